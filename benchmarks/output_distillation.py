"""Recovery without labels: how far a pruned network's outputs are from the original's, before and after each stage.

    python -m benchmarks.output_distillation --data FOLDER [--model onnx/yolox_nano.onnx] [--ratio 0.7] [--images 240]
        [--epochs 2] [--optimizer adamw|sgd] [--learning-rate R] [--json F]

FOLDER holds the model and `cifar10/*.parquet`, whose pictures, enlarged to the network's input, serve as photographs; no
label is used. The error is relative, over all outputs, on held-out pictures; the last column is on test pictures, which
nothing was chosen by.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from core.analysis import profile
from core.budget import Budget, Cap
from core.choice import Chooser
from core.intake import load_network
from core.network import Network
from core.recovery import ImageDataset, RecoveryConfig, recover
from core.recovery.images import Split
from core.recovery.judges import OutputJudge
from core.surgery import apply, kept_indices


def main() -> None:
    arguments = _arguments()
    original = load_network(arguments.data / arguments.model, architecture=None)
    dataset = _pictures(arguments.data / "cifar10", arguments.images, original, arguments.scale)
    constraints = Budget((Cap("macs", max_ratio=arguments.ratio),)).constraints(profile(original).costs)
    choice = Chooser(original, {"type": "magnitude"}, seed=0).choose(constraints)
    network = apply(original, choice.analysis, choice.plan.keep)
    test = OutputJudge(original, replace(dataset, val=dataset.test), torch.device("cpu"))
    started = time.perf_counter()
    found = recover(
        network,
        original,
        dataset,
        RecoveryConfig(
            epochs=arguments.epochs,
            optimizer=arguments.optimizer,
            learning_rate=arguments.learning_rate,
            batch_size=arguments.batch_size,
        ),
        kept=kept_indices(choice.analysis, choice.plan.keep),
        progress=lambda event: print(event.message, flush=True) if event.epoch else None,
    )
    seconds = time.perf_counter() - started
    errors = found.details["output_error"]
    table = Table("stage", "held-out output error", "test output error")
    tested = {"pruned": test.value(network), found.details["method"]: test.value(found.network)}
    for name, error in errors.items():
        table.add_row(name, f"{error:.4f}", f"{tested[name]:.4f}" if name in tested else "")
    Console(highlight=False).print(table)
    training = found.details["training"]
    print(f"{arguments.model}, {arguments.ratio:.0%} of the MACs, {training.get('steps', 0)} steps, {seconds:.0f} s.")
    if arguments.json:
        record = {"model": arguments.model, "ratio": arguments.ratio, "test_output_error": tested, **found.details}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _pictures(folder: Path, count: int, original: Network, scale: float) -> ImageDataset:
    """`count` pictures of the network's size, 80 % to train on, the rest shared by validation and test."""
    channels, height, width = original.inputs[0].shape
    (path,) = folder.glob("test-*.parquet")
    column = parquet.read_table(path, columns=["image"]).slice(0, count)["image"]
    pictures = []
    for row in column:
        with Image.open(io.BytesIO(row.as_py())) as picture:
            pictures.append(np.asarray(picture.convert("L" if channels == 1 else "RGB").resize((width, height))))
    images = torch.from_numpy(np.stack(pictures))
    images = images[:, None] if channels == 1 else images.permute(0, 3, 1, 2).contiguous()
    first, second = int(0.8 * count), int(0.9 * count)
    train, val, test = (Split(part, None) for part in (images[:first], images[first:second], images[second:]))
    return ImageDataset("pictures", None, train, val, test, None, scale)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="onnx/yolox_nano.onnx")
    parser.add_argument("--ratio", type=float, default=0.7)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--scale", type=float, default=1.0, help="what pixels are divided by; 1 leaves 0…255")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--optimizer", choices=("sgd", "adamw"))
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
