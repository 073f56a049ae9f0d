"""What recovery brings back of ResNet-20 on CIFAR-10 at half of its MACs, stage by stage, beside Torch-Pruning.

    python -m benchmarks.recovery_cpu --data FOLDER [--epochs 3] [--ratio 0.5] [--seeds 0] [--method JSON] [--json F]
        [--ways ours job torch-pruning] [--distill yes no] [--checkpoints FOLDER] [--train-images N] [--test-images N]

FOLDER holds `checkpoints/resnet20-cifar10.th` and `cifar10/*.parquet`. Accuracy before and after each stage is that of the
test split; after each epoch it is that of validation images, as the test split decides nothing. Every way goes through the
same training loop, with and without distillation: `ours` removes channels (or what `--method` says), `job` is a whole job with
its defaults, where the engine chooses the method (`auto`), on the whole dataset; Torch-Pruning's network (MagnitudeImportance,
global, no refit, as its users prune) too, where it can be imported. A row that F already has is not measured again, and with `--checkpoints` an
interrupted training goes on, so that the table can be made in pieces. `--train-images` and `--test-images` shorten a trial;
its figures are its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Rows
from benchmarks.scores import NORMALIZATION, archive_of, cifar10
from core.analysis import profile
from core.architectures import build
from core.budget import Budget, Cap
from core.checkpoint import Checkpoint
from core.choice import Chooser
from core.engine import compress
from core.intake import load_network
from core.measure import independent_costs
from core.network import Network
from core.progress import ProgressEvent
from core.recovery import ImageDataset, RecoveryConfig, accuracy, recover
from core.recovery.corrections import refitted
from core.recovery.judges import AccuracyJudge
from core.recovery.steps import Steps
from core.recovery.training_attempts import train
from core.request import CompressionRequest
from core.surgery import apply, kept_indices

CHECKPOINT, ARCHITECTURE = "checkpoints/resnet20-cifar10.th", "cifar_resnet20"
STEPS = 400
CHECKPOINT_S = 20.0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Trial:
    """What every way is asked for. ratio: of the MACs. method: as in a job. checkpoints: where trainings are left.

    data: the folder of the whole dataset, which a job reads.
    """

    ratio: float
    epochs: int
    method: Mapping[str, Any] = field(default_factory=lambda: {"type": "magnitude"})
    checkpoints: Path | None = None
    data: Path | None = None


def main() -> None:
    arguments = _arguments()
    original = load_network(arguments.data / CHECKPOINT, architecture=ARCHITECTURE)
    dataset = cifar10(arguments.data / "cifar10", arguments.train_images, arguments.test_images)
    shared = {
        "method": arguments.method,
        "ratio": arguments.ratio,
        "epochs": arguments.epochs,
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "original": accuracy(original, dataset.test, dataset),
    }
    rows = Rows(arguments.json, shared)
    trial = Trial(arguments.ratio, arguments.epochs, arguments.method, arguments.checkpoints, arguments.data)
    for seed, way, distill in itertools.product(arguments.seeds, arguments.ways, arguments.distill):
        key = {"way": way, "distill": distill == "yes", "seed": seed}
        if rows.has(key):
            continue
        row = WAYS[way](original, dataset, seed, key["distill"], trial)
        rows.add(key, row)
        print(f"{way}, distillation {distill}, seed {seed}: {row['after']:.4f}", flush=True)
    _print(rows.all, shared["original"], arguments.epochs)


def _ours(original: Network, dataset: ImageDataset, seed: int, distill: bool, trial: Trial) -> dict[str, Any]:
    """Pruned, refitted and trained as a job would."""
    constraints = Budget((Cap("macs", max_ratio=trial.ratio),)).constraints(profile(original).costs)
    choice = Chooser(original, trial.method, seed=seed, dataset=dataset, device=CPU).choose(constraints)
    network = apply(original, choice.analysis, choice.plan.keep)
    kept = kept_indices(choice.analysis, choice.plan.keep)
    refit = refitted(network, original, dataset, kept, CPU)
    started = time.perf_counter()
    config = RecoveryConfig(epochs=trial.epochs, distill=distill)
    found = recover(
        network,
        original,
        dataset,
        config,
        kept=kept,
        seed=seed,
        progress=_told,
        checkpoint=_checkpoint(trial, "ours", seed, distill),
    )
    return {
        "macs_ratio": profile(network).costs.macs / profile(original).costs.macs,
        "before": found.details["accuracy"]["before"]["test"],
        "refit": accuracy(refit.network or network, dataset.test, dataset),
        "refit_s": refit.details.get("seconds"),
        "after": found.accuracy_after,
        **_trained(found.details["training"]),
        "seconds": time.perf_counter() - started,
    }


def _job(original: Network, dataset: ImageDataset, seed: int, distill: bool, trial: Trial) -> dict[str, Any]:
    """Everything as the engine does it when only the budget and the epochs are given."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        request = CompressionRequest(
            trial.data / CHECKPOINT,
            Budget((Cap("macs", max_ratio=trial.ratio),)),
            architecture=ARCHITECTURE,
            dataset_path=archive_of(trial.data / "cifar10", Path(folder)),
            normalization=NORMALIZATION,
            recovery={"epochs": trial.epochs, "distill": distill},
            device="cpu",
            seed=seed,
        )
        result = compress(request, Path(folder) / "out", _told, _checkpoint(trial, "job", seed, distill))
    recovery = result["recovery"]
    return {
        "macs_ratio": result["compressed"]["macs"] / result["baseline"]["macs"],
        "before": recovery["accuracy"]["before"]["test"],
        "refit": None,
        "after": recovery["accuracy"]["after"]["test"],
        "trial": recovery.get("trial"),
        **_trained(recovery["training"]),
        "seconds": time.perf_counter() - started,
    }


def _torch_pruning(original: Network, dataset: ImageDataset, seed: int, distill: bool, trial: Trial) -> dict[str, Any]:
    """The same loop from what Torch-Pruning leaves."""
    network = _pruned_by_torch_pruning(original, trial.ratio)
    judge = AccuracyJudge(original, dataset, CPU)
    started = time.perf_counter()
    config = RecoveryConfig(epochs=trial.epochs, distill=distill)
    steps = Steps(_checkpoint(trial, "torch_pruning", seed, distill), "torch_pruning", network)
    start = judge.value(network)
    found = train(network, "pruned", start, original, dataset, config, judge, seed, CPU, _told, steps, kept={})
    return {
        "macs_ratio": independent_costs(network).macs / profile(original).costs.macs,
        "before": accuracy(network, dataset.test, dataset),
        "refit": None,
        "after": accuracy(found.network or network, dataset.test, dataset),
        **_trained(found.details),
        "seconds": time.perf_counter() - started,
    }


def _checkpoint(trial: Trial, way: str, seed: int, distill: bool) -> Checkpoint:
    if trial.checkpoints is None:
        return Checkpoint()
    trial.checkpoints.mkdir(parents=True, exist_ok=True)
    return Checkpoint(trial.checkpoints / f"{way}-{seed}-{distill}", interval_s=CHECKPOINT_S)


WAYS = {"ours": _ours, "job": _job, "torch-pruning": _torch_pruning}


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
        **{
            name: training.get(name) for name in ("images_per_s", "threads", "precision", "batch_size", "learning_rate")
        },
    }


def _told(event: ProgressEvent) -> None:
    if event.epoch is not None:
        print(f"  {event.message}", flush=True)


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
    used = {f"{row['threads']} threads, {row['precision']}, batch {row['batch_size']}" for row in rows}
    console.print(
        f"The original: {_percent(original)} on the same test images. Training on the CPU: {'; '.join(used)}."
    )
    # The standard deviation of a share of right answers.
    chance = max((100 * math.sqrt(row["after"] * (1 - row["after"]) / row["test_images"]) for row in rows), default=0)
    console.print(f"Chance alone moves what is left after training by ± {chance:.1f} points, at most.")


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
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--distill", nargs="+", choices=("yes", "no"), default=["yes", "no"])
    parser.add_argument("--checkpoints", type=Path, help="where interrupted trainings are left and taken up")
    parser.add_argument("--json", type=Path, help="every row; those that it has are not measured again")
    arguments = parser.parse_args()
    if "job" in arguments.ways and (arguments.train_images or arguments.test_images):
        parser.error(
            "a job takes the whole dataset: leave --train-images and --test-images out, or `job` out of --ways."
        )
    if importlib.util.find_spec("torch_pruning") is None and "torch-pruning" in arguments.ways:
        print("Torch-Pruning cannot be imported; its rows are left out.")
        arguments.ways.remove("torch-pruning")
    return arguments


if __name__ == "__main__":
    main()
