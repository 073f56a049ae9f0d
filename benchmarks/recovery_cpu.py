"""What recovery brings back of ResNet-20 on CIFAR-10 at half of its MACs, stage by stage, beside Torch-Pruning.

    python -m benchmarks.recovery_cpu --data FOLDER [--epochs 3] [--ratio 0.5] [--seeds 0] [--method JSON] [--json F]
        [--train-images N] [--test-images N]

FOLDER holds `checkpoints/resnet20-cifar10.th` and `cifar10/*.parquet`. Accuracy before and after each stage is that of the
test split; after each epoch it is that of validation images, as the test split decides nothing. Every way goes through the
same training loop, with and without distillation; Torch-Pruning's network (MagnitudeImportance, global, no refit, as its
users prune) too, where it can be imported. `--train-images` and `--test-images` shorten a trial; its figures are its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.scores import cifar10
from core.analysis import profile
from core.architectures import build
from core.budget import Budget, Cap
from core.checkpoint import Checkpoint
from core.choice import Chooser
from core.intake import load_network
from core.measure import independent_costs
from core.network import Network
from core.progress import ProgressEvent
from core.recovery import ImageDataset, RecoveryConfig, accuracy, recover
from core.recovery.judges import AccuracyJudge
from core.recovery.steps import Steps
from core.recovery.training_attempts import train
from core.surgery import apply, kept_indices

STEPS = 400
CPU = torch.device("cpu")


def main() -> None:
    arguments = _arguments()
    original = load_network(arguments.data / "checkpoints" / "resnet20-cifar10.th", architecture="cifar_resnet20")
    dataset = _shortened(cifar10(arguments.data / "cifar10"), arguments)
    rows = []
    for seed in arguments.seeds:
        rows += _ours(original, dataset, seed, arguments)
        if importlib.util.find_spec("torch_pruning") is not None:
            rows += _torch_pruning(original, dataset, seed, arguments)
    _print(rows, accuracy(original, dataset.test, dataset), arguments.epochs)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _ours(original: Network, dataset: ImageDataset, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    constraints = Budget((Cap("macs", max_ratio=arguments.ratio),)).constraints(profile(original).costs)
    choice = Chooser(original, arguments.method, seed=seed, dataset=dataset, device=CPU).choose(constraints)
    network = apply(original, choice.analysis, choice.plan.keep)
    kept = kept_indices(choice.analysis, choice.plan.keep)
    refit = recover(network, original, dataset, RecoveryConfig(epochs=0), kept=kept, seed=seed)
    rows = []
    for distill in (True, False):
        started = time.perf_counter()
        config = RecoveryConfig(epochs=arguments.epochs, distill=distill)
        found = recover(network, original, dataset, config, kept=kept, seed=seed, progress=_told)
        rows.append(
            {
                "way": f"refit + training, {arguments.method['type']}",
                "distill": distill,
                "seed": seed,
                "macs_ratio": profile(network).costs.macs / profile(original).costs.macs,
                "before": found.details["accuracy"]["before"]["test"],
                "refit": refit.accuracy_after,
                "after": found.accuracy_after,
                **_trained(found.details["training"]),
                "seconds": time.perf_counter() - started,
            }
        )
        print(f"ours, distill {distill}: {rows[-1]['after']:.4f}", flush=True)
    return rows


def _torch_pruning(
    original: Network, dataset: ImageDataset, seed: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The same loop from what Torch-Pruning leaves."""
    network = _pruned_by_torch_pruning(original, arguments.ratio)
    before = accuracy(network, dataset.test, dataset)
    judge = AccuracyJudge(original, dataset, CPU)
    rows = []
    for distill in (True, False):
        started = time.perf_counter()
        config = RecoveryConfig(epochs=arguments.epochs, distill=distill)
        steps = Steps(Checkpoint(), "torch_pruning", network)
        start = judge.value(network)
        found = train(network, "pruned", start, original, dataset, config, judge, seed, CPU, _told, steps)
        rows.append(
            {
                "way": "Torch-Pruning + training",
                "distill": distill,
                "seed": seed,
                "macs_ratio": independent_costs(network).macs / profile(original).costs.macs,
                "before": before,
                "refit": None,
                "after": accuracy(found.network, dataset.test, dataset) if found.network is not None else None,
                **_trained(found.details),
                "seconds": time.perf_counter() - started,
            }
        )
        print(f"Torch-Pruning, distill {distill}: {rows[-1]['after']}", flush=True)
    return rows


def _pruned_by_torch_pruning(original: Network, ratio: float) -> Network:
    """By group magnitude, globally, in small steps until the count of MACs is within the ratio.

    Only inside the blocks: the padding of these shortcuts has fixed widths, which Torch-Pruning does not follow.
    """
    import torch_pruning

    module, example = build("cifar_resnet20", {}), torch.zeros(1, *original.inputs[0].shape)
    module.load_state_dict({name: original.tensors.get(name, value) for name, value in module.state_dict().items()})
    module.eval()
    whole = profile(original).costs.macs
    stream = [layer for name, layer in module.named_modules() if name in ("conv1", "linear") or name.endswith(".conv2")]
    pruner = torch_pruning.pruner.MetaPruner(
        module,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=stream,
    )
    shapes = {original.inputs[0].name: original.inputs[0].shape}
    for _ in range(STEPS):
        pruner.step()
        if torch_pruning.utils.count_ops_and_params(module, example)[0] <= ratio * whole:
            break
    return Network.from_module(module, shapes)


def _trained(training: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "validation": [epoch["validation_accuracy"] for epoch in training.get("epoch_records", ())],
        "images_per_s": training.get("images_per_s"),
        "threads": training.get("threads"),
        "precision": training.get("precision"),
    }


def _told(event: ProgressEvent) -> None:
    if event.epoch is not None:
        print(f"  {event.message}", flush=True)


def _shortened(dataset: ImageDataset, arguments: argparse.Namespace) -> ImageDataset:
    if arguments.train_images:
        dataset = replace(dataset, train=dataset.train.sample(arguments.train_images))
    if arguments.test_images:
        val, test = (split.sample(arguments.test_images) for split in (dataset.val, dataset.test))
        dataset = replace(dataset, val=val, test=test)
    return dataset


def _print(rows: list[dict[str, Any]], original: float, epochs: int) -> None:
    head = [
        "way",
        "distill",
        "seed",
        "MACs",
        "before",
        "refit",
        *(f"epoch {n + 1} (val)" for n in range(epochs)),
        "after",
    ]
    table = Table(*head, "images/s")
    for row in rows:
        cells = [f"{100 * row['macs_ratio']:.1f} %", _percent(row["before"]), _percent(row["refit"])]
        cells += [_percent(value) for value in row["validation"]] + [_percent(row["after"])]
        rate = f"{row['images_per_s']:,.0f}" if row["images_per_s"] else ""
        table.add_row(row["way"], "yes" if row["distill"] else "no", str(row["seed"]), *cells, rate)
    console = Console(highlight=False, width=180)
    console.print(table)
    console.print(f"The original: {_percent(original)} on the same test images.")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--method", type=json.loads, default={"type": "magnitude"}, help="as in a job")
    parser.add_argument("--train-images", type=int, help="fewer of them, for a trial")
    parser.add_argument("--test-images", type=int, help="fewer of them, of validation and test, for a trial")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
