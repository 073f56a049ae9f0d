"""Images per second of recovery's training loop beside a plain PyTorch loop, in one run on one machine.

    python -m benchmarks.recovery_speed --data FOLDER [--steps 20] [--rounds 3] [--workers 0 2] [--json F]

FOLDER holds `checkpoints/resnet20-cifar10.th` and `cifar10/*.parquet`. Both loops train ResNet-20 on CIFAR-10 with SGD,
batches of 128, random crops and flips. The plain loop is what a tutorial shows: a DataLoader over pictures with torchvision
transforms, float32, channels first, and the teacher as it is. Ours keeps uint8 images on the device, computes in bfloat16
where the processor does, channels last, with a folded teacher and as many threads as it finds fastest. The loops take
turns, and the median round counts; `precision` shows which part of the difference bfloat16 is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.scores import NORMALIZATION, cifar10
from core.intake import load_network
from core.module_form import to_module
from core.network import Network
from core.progress import silent
from core.recovery import ImageDataset, RecoveryConfig
from core.recovery.augmentation import Augmentation
from core.recovery.judges import judge_for
from core.recovery.schedule import plan_schedule
from core.recovery.threads import fastest_threads, using
from core.recovery.training import Lesson, Trainer

BATCH = 128
CPU = torch.device("cpu")


class Pictures(Dataset):
    """Images of a split, each transformed when it is asked for."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._images, self._labels = dataset.train.images.permute(0, 2, 3, 1).numpy(), dataset.train.labels
        self._transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(*NORMALIZATION),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._images[index]), int(self._labels[index])


def plain_loop(original: Network, dataset: ImageDataset, *, distill: bool, workers: int) -> Iterator[None]:
    """A step at a time, for ever."""
    module, teacher = to_module(original).train(), to_module(original)
    loader = DataLoader(Pictures(dataset), BATCH, shuffle=True, drop_last=True, num_workers=workers)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    while True:
        for images, labels in loader:
            scores = module(images)
            loss = F.cross_entropy(scores, labels)
            if distill:
                with torch.no_grad():
                    wanted = teacher(images)
                loss = 0.1 * loss + 0.9 * 16 * _divergence(scores, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def _divergence(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return nn.KLDivLoss(reduction="batchmean")(F.log_softmax(scores / 4, dim=1), F.softmax(wanted / 4, dim=1))


def own_loop(original: Network, dataset: ImageDataset, *, distill: bool, precision: str) -> tuple[Iterator[Any], int]:
    """Our steps, and the number of threads that they are to run with."""
    config = RecoveryConfig(epochs=1000, batch_size=BATCH, distill=distill, precision=precision)
    schedule = plan_schedule(config, len(dataset.train), original, original, CPU)
    lesson = Lesson(original, dataset, schedule, Augmentation(True, 4), judge_for(original, dataset, CPU), 0, CPU)
    trainer = Trainer(original, lesson, silent)
    rows, images = trainer.batches.next()
    threads, _ = fastest_threads(lambda: trainer.learn(0, rows, images))
    return iter(Trainer(original, replace(lesson, seed=1), silent)), threads


def main() -> None:
    arguments = _arguments()
    original = load_network(arguments.data / "checkpoints" / "resnet20-cifar10.th", architecture="cifar_resnet20")
    dataset = cifar10(arguments.data / "cifar10")
    rows = []
    for distill in (False, True):
        loops: dict[str, tuple[Callable[[], Any], int]] = {}
        for workers in arguments.workers:
            plain = plain_loop(original, dataset, distill=distill, workers=workers)
            loops[f"plain, {workers} workers"] = (lambda steps=plain: next(steps), torch.get_num_threads())
        for precision in ("float32", "auto"):
            steps, threads = own_loop(original, dataset, distill=distill, precision=precision)
            loops[f"ours, {precision}"] = (lambda steps=steps: next(steps), threads)
        rows += _measured(loops, distill, arguments)
    table = Table("loop", "distillation", "threads", "images/s", "against the faster plain loop")
    for row in rows:
        best = max(
            one["images_per_s"] for one in rows if one["loop"][:5] == "plain" and one["distill"] == row["distill"]
        )
        row["against_plain"] = row["images_per_s"] / best
        cells = ["yes" if row["distill"] else "no", str(row["threads"]), f"{row['images_per_s']:,.0f}"]
        table.add_row(row["loop"], *cells, f"{row['against_plain']:.2f}×")
    Console(highlight=False, width=120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _measured(
    loops: dict[str, tuple[Callable[[], Any], int]], distill: bool, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(1 + arguments.rounds):
        for name, (step, threads) in loops.items():
            with using(threads):
                started = time.perf_counter()
                for _ in range(arguments.steps if turn else 2):
                    step()
                seconds = time.perf_counter() - started
            if turn:  # the first turn starts workers and fills caches
                rates[name].append(arguments.steps * BATCH / seconds)
    return [
        {"loop": name, "distill": distill, "threads": loops[name][1], "images_per_s": statistics.median(found)}
        for name, found in rates.items()
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20, help="steps of each loop per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader; the best counts")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
