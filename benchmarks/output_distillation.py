"""Recovery without labels: how far a pruned network's outputs are from the original's, before and after each stage.

    python -m benchmarks.output_distillation --data FOLDER [--model onnx/yolox_nano.onnx] [--ratio 0.7]
        [--pictures collages|photographs|enlarged] [--images 240] [--epochs 2] [--batch-size N] [--optimizer adamw|sgd]
        [--learning-rate R] [--json F] [--npz F]

FOLDER holds the model and `cifar10/*.parquet`; no label is used (`benchmarks/pictures.py` says which pictures there are).
The error is relative, over all outputs, on held-out pictures; the last column is on test pictures, which nothing was chosen
by. `--npz` writes the pictures as a dataset, for a job of the service, and ends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.pictures import KINDS, picture_set, save_npz
from core.analysis import profile
from core.budget import Budget, Cap
from core.checkpoint import Checkpoint
from core.choice import Chooser
from core.intake import load_network
from core.recovery import RecoveryConfig, recover
from core.recovery.judges import OutputJudge
from core.recovery.pipeline import Recovered
from core.surgery import apply, kept_indices


def main() -> None:
    arguments = _arguments()
    original = load_network(arguments.data / arguments.model, architecture=None)
    shape = tuple(original.inputs[0].shape)
    dataset = picture_set(arguments.data, arguments.pictures, arguments.images, shape, arguments.scale)
    if arguments.npz:
        save_npz(dataset, arguments.npz)
        return
    constraints = Budget((Cap("macs", max_ratio=arguments.ratio),)).constraints(profile(original).costs)
    choice = Chooser(original, {"type": "magnitude"}, seed=0).choose(constraints)
    network = apply(original, choice.analysis, choice.plan.keep)
    test = OutputJudge(original, replace(dataset, val=dataset.test), torch.device("cpu"))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:

        def recovered(config: RecoveryConfig) -> Recovered:
            """What was fitted once is taken over from the checkpoint."""
            return recover(
                network,
                original,
                dataset,
                config,
                kept=kept_indices(choice.analysis, choice.plan.keep),
                progress=lambda event: print(event.message, flush=True) if event.epoch else None,
                checkpoint=Checkpoint(Path(folder) / "state", "benchmark"),
            )

        fitted = recovered(RecoveryConfig(epochs=0))
        found = recovered(
            RecoveryConfig(
                epochs=arguments.epochs,
                optimizer=arguments.optimizer,
                learning_rate=arguments.learning_rate,
                batch_size=arguments.batch_size,
            )
        )
    seconds = time.perf_counter() - started
    errors = found.details["output_error"]
    table = Table("stage", "held-out output error", "test output error")
    tested = {"pruned": test.value(network)}
    for one in (fitted, found):
        tested[one.details["method"]] = test.value(one.network)
    for name, error in errors.items():
        table.add_row(name, f"{error:.4f}", f"{tested[name]:.4f}" if name in tested else "")
    Console(highlight=False).print(table)
    training = found.details["training"]
    print(
        f"{arguments.model}, {arguments.ratio:.0%} of the MACs, {len(dataset.train)} {arguments.pictures} to learn from, "
        f"{training.get('steps', 0)} steps of {training.get('batch_size', 0)} pictures, {seconds:.0f} s."
    )
    if arguments.json:
        record = {"model": arguments.model, "ratio": arguments.ratio, "test_output_error": tested, **found.details}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="onnx/yolox_nano.onnx")
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--pictures", choices=sorted(KINDS), default="collages")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--scale", type=float, default=1.0, help="what pixels are divided by; 1 leaves 0…255")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"))
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--npz", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
