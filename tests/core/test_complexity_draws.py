"""Several draws of the complexity-driven method: the best by validation is delivered, and the spread is told."""

import dataclasses
import json
import statistics

import pytest

from core.analysis import profile
from core.budget import Cap
from core.choice import Chooser
from core.deliver.report_html import report_html
from core.draws import draw_and_make
from core.engine import compress
from core.errors import EngineError
from core.recovery import Recovered
from core.run import Made
from tests.core.recovery_cases import digit_requests, trained_network
from tests.core.report_cases import result as small_result


@pytest.fixture(scope="module")
def request_for(tmp_path_factory):
    request = digit_requests(tmp_path_factory.mktemp("draws"))

    def make(with_data=True, **options):
        data, recovery = ("labelled", {"epochs": 0}) if with_data else (None, {})
        return request(({"type": "complexity", **options},), Cap("macs", max_ratio=0.5), data, recovery=recovery)

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


@pytest.fixture
def drawn(request_for):
    """Two seeds of three modes, of which those that are named miss a cap on latency, and the others halve their MACs."""
    network = trained_network()
    request = request_for(with_data=False, seeds=2, compare=True)
    constraints = request.budget.constraints(profile(network).costs)
    chooser = Chooser(network, request.methods[0], seed=request.seed)

    def draw(*missing: str):
        def make(one, choice, step):
            if step in missing:
                raise EngineError("target_unmet", f"{step} takes too long", param="/budget/latency_ms")
            costs = choice.plan.predicted
            plan = dataclasses.replace(choice.plan, predicted=dataclasses.replace(costs, macs=costs.macs // 2))
            return Made(dataclasses.replace(choice, plan=plan), None, Recovered(network, {}))

        return draw_and_make(chooser, chooser.choose(constraints), constraints, request, make, "step")

    return draw


def test_draws_that_miss_the_latency_are_noted_while_another_of_the_mode_meets_it(drawn):
    made = drawn("step", "step_memory_0", "step_memory_1")
    found = made.recovered.details["complexity"]
    assert [(row["mode"], row["seed"], row["delivered"]) for row in found["draws"]] == [
        ("flops", 1, True),
        ("params", 0, False),
        ("params", 1, False),
    ]
    assert [(one["mode"], one["seed"], one["code"]) for one in found["missed"]] == [
        ("flops", 0, "target_unmet"),
        ("memory", 0, "target_unmet"),
        ("memory", 1, "target_unmet"),
    ]
    assert [mode["mode"] for mode in found["modes"]] == ["flops", "params"]
    page = report_html(small_result(recovery={"method": "none", "complexity": found}))
    assert "Not within the caps: FLOPs-aware with seed 0, memory-aware with seed 0" in page


def test_a_draw_is_reported_with_the_costs_of_what_was_made(drawn):
    made = drawn()
    (best,) = [row for row in made.recovered.details["complexity"]["draws"] if row["delivered"]]
    assert best["macs"] == made.choice.plan.predicted.macs


def test_a_mode_of_which_every_draw_misses_the_latency_is_refused(drawn):
    with pytest.raises(EngineError, match="step takes too long") as refusal:
        drawn("step", "step_flops_1")
    assert refusal.value.code == "target_unmet"


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
