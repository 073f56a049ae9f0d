"""What decides how training rounds can be pinned, is recorded, and is gone on with; torch.compile is left where it fails."""

import pytest
import torch

from core.checkpoint import Checkpoint
from core.errors import EngineError
from core.recovery import RecoveryConfig, load_dataset, recover
from tests.core.recovery_cases import Dying, Killed, pruned_and_kept, pruned_network, save_digits, trained_network


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return load_dataset(save_digits(tmp_path_factory.mktemp("digits")))


def run(dataset, checkpoint=None, **config):
    return recover(
        pruned_network(),
        trained_network(),
        dataset,
        RecoveryConfig(**{"epochs": 1, "threads": 1, **config}),
        kept=pruned_and_kept()[1],
        checkpoint=checkpoint,
    )


def same(one, other):
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_the_layout_is_recorded_and_kept_by_a_run_that_goes_on(dataset, tmp_path):
    assert run(dataset).details["training"]["layout"] == "channels_last"
    whole = run(dataset, layout="contiguous", precision="float32")
    assert (whole.details["training"]["layout"], whole.details["training"]["precision"]) == ("contiguous", "float32")
    with pytest.raises(Killed):
        run(dataset, Dying(tmp_path / "state"), layout="contiguous", precision="float32")
    # Whatever is chosen elsewhere, it goes on as it began.
    resumed = run(dataset, Checkpoint(tmp_path / "state", "request"), precision="bfloat16")
    assert resumed.details["training"]["layout"] == "contiguous"
    assert resumed.details["training"]["precision"] == "float32"
    assert same(whole.network, resumed.network)


def test_without_a_compiler_training_goes_on_as_it_would_have_and_says_so(dataset, monkeypatch):
    def no_compiler(module, **options):
        def call(inputs):
            module(inputs)  # moves the running statistics, as a step that fails half way would
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore of that")

        return call

    plain = run(dataset)
    monkeypatch.setattr(torch, "compile", no_compiler)
    found = run(dataset, compile=True)
    training = found.details["training"]
    assert not training["compiled"] and not plain.details["training"]["compiled"]
    (note,) = training["notes"]
    assert "without torch.compile" in note and "No working C++ compiler" in note and "more of that" not in note
    assert same(plain.network, found.network)


def test_a_compiled_module_is_what_is_called_and_trains_the_same_weights(dataset, monkeypatch):
    calls = []

    def compiler(module, **options):
        return lambda inputs: (calls.append(len(inputs)), module(inputs))[1]

    plain = run(dataset)
    monkeypatch.setattr(torch, "compile", compiler)
    found = run(dataset, compile=True)
    training = found.details["training"]
    assert training["compiled"] and training["notes"] == []
    assert len(calls) == 1 + training["steps"]
    assert same(plain.network, found.network)


@pytest.mark.parametrize("options", [{"layout": "sideways"}, {"processes": 0}, {"processes": 17}])
def test_what_does_not_exist_is_refused(options):
    with pytest.raises(EngineError, match=next(iter(options))):
        RecoveryConfig(**options)
