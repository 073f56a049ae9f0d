"""Several draws of the complexity-driven method: the best by validation is delivered, and the spread is told."""

import json
import statistics

import pytest

from core.budget import Budget, Cap
from core.deliver.report_html import report_html
from core.engine import CompressionRequest, compress
from core.intake import save_safetensors
from tests.core.recovery_cases import save_digits, trained_network
from tests.core.report_cases import result as small_result

ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}


@pytest.fixture(scope="module")
def request_for(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draws")
    save_safetensors(trained_network().tensors, folder / "model.safetensors")
    data = save_digits(folder)

    def make(with_data=True, **options) -> CompressionRequest:
        return CompressionRequest(
            folder / "model.safetensors",
            Budget((Cap("macs", max_ratio=0.5),)),
            architecture="cifar_resnet",
            architecture_args=ARGS,
            input_shape=(1, 8, 8),
            methods=({"type": "complexity", **options},),
            dataset_path=data if with_data else None,
            recovery={"epochs": 0} if with_data else {},
            outputs=("safetensors", "report"),
        )

    return make


def test_three_seeds_of_three_modes_are_recovered_and_the_best_of_the_asked_mode_is_delivered(request_for, tmp_path):
    result = compress(request_for(seeds=3, compare=True), tmp_path)
    found = result["recovery"]["complexity"]
    assert found["mode"] == "flops"
    assert [(mode["mode"], mode["seeds"]) for mode in found["modes"]] == [("flops", 3), ("params", 3), ("memory", 3)]
    for row in found["draws"]:
        assert 0.98 * result["constraints"][0]["limit"] <= row["macs"] <= result["constraints"][0]["limit"]
    (best,) = [row for row in found["draws"] if row["delivered"]]
    assert best["mode"] == "flops" and best["accuracy"] == result["compressed"]["accuracy"]
    assert (best["params"], best["macs"]) == (result["compressed"]["params"], result["compressed"]["macs"])
    for mode in found["modes"]:
        accuracies = [row["accuracy"] for row in found["draws"] if row["mode"] == mode["mode"]]
        assert mode["accuracy"] == pytest.approx(statistics.fmean(accuracies))
        assert mode["accuracy_spread"] == pytest.approx(statistics.stdev(accuracies))
    assert len({row["params"] for row in found["draws"]}) > 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("memory-aware") >= 4 and "Accuracy (test)" in page and " ± " in page


def test_without_asking_the_other_modes_are_only_planned(request_for, tmp_path):
    result = compress(request_for(with_data=False), tmp_path)
    found = result["recovery"]["complexity"]
    assert [(row["mode"], row["seed"], row["delivered"]) for row in found["draws"]] == [
        ("flops", 0, True),
        ("params", 0, False),
        ("memory", 0, False),
    ]
    assert all(row["accuracy"] is None for row in found["draws"])
    assert found["modes"][0]["params_spread"] is None
    json.dumps(found, allow_nan=False)


def test_a_bar_is_as_long_as_the_share_and_a_network_of_another_method_has_no_picture():
    modes = [
        {"mode": "flops", "seeds": 2, "params": 25, "params_spread": 5.0, "macs": 500, "macs_spread": 0.0}
        | {"memory_bytes": 400, "memory_bytes_spread": 0.0, "accuracy": None, "accuracy_spread": None}
    ]
    page = report_html(
        small_result(recovery={"method": "none", "complexity": {"mode": "flops", "modes": modes, "draws": []}})
    )
    assert 'width="90.0" height="12"' in page and "25 ± 5" in page
    assert "Complexity modes" not in report_html(small_result())
