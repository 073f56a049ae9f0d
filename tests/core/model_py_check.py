"""Run by `python -I` in a folder with model.py, model.safetensors and expected.pt; prints what it saw as JSON.

Nothing but torch is importable beside the standard library and model.py itself.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import torch


def main() -> None:
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("model", "model.py")
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    model = generated.load("model.safetensors")
    foreign = {name.partition(".")[0] for name in set(sys.modules) - before}
    foreign -= {"torch", "model", *sys.stdlib_module_names}
    expected = torch.load("expected.pt", weights_only=True)
    assert not model.training
    assert sorted(model.state_dict()) == expected["names"]
    assert sorted(name for name, _ in model.named_parameters(remove_duplicate=False)) == expected["parameters"]
    worst = 0.0
    with torch.no_grad():
        for inputs, outputs in expected["cases"].values():
            got = model(*(tensor.clone() for tensor in inputs))
            got = got if isinstance(got, tuple) else (got,)
            assert len(got) == len(outputs)
            for one, other in zip(got, outputs, strict=True):
                assert one.shape == other.shape
                worst = max(worst, ((one - other).norm() / other.norm().clamp_min(1e-12)).item())
    inputs, _ = expected["cases"]["5"]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    got = model(*(tensor.clone() for tensor in inputs))
    sum(output.square().mean() for output in (got if isinstance(got, tuple) else (got,))).backward()
    moved = {
        name.rpartition(".")[2] for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])
    }
    tracked = "num_batches_tracked" in moved and "running_mean" in moved and "running_var" in moved
    print(
        json.dumps({"worst_error": worst, "foreign_modules": sorted(foreign), "statistics_move_in_training": tracked})
    )


main()
