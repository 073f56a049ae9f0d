"""Batch-norm statistics after pruning: transferred from the original by ratio, or estimated anew; on noise, or on images.

    python -m benchmarks.data_free_recalibration --data DATA [--images 2000] [--json FILE]

DATA holds `checkpoints/resnet20-cifar10.th`, `checkpoints/resnet56-cifar10.th` and `cifar10/*.parquet`. Each network is
pruned by magnitude at three MAC budgets and not trained. Columns: top-1 accuracy on test images as pruned; with
statistics transferred on 256 samples of Gaussian noise, 1/f noise or training images; with statistics estimated anew on
the same; `guard` is the relative output error without → with transfer that the data-free guard measures on Gaussian
noise. Seed 0.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from core.analysis import ChannelAnalysis, analyse
from core.budget import Budget, Cap
from core.intake import load_network
from core.methods import get_method
from core.network import Network
from core.planning import plan_widths
from core.recovery import ImageDataset, accuracy, load_dataset
from core.recovery.recalibration import kept_channels, statistics, transfer, transfer_guard
from core.surgery import apply, kept_indices

NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RATIOS = (0.5, 0.7, 0.9)
EXAMPLES = 256
CPU = torch.device("cpu")


def main() -> None:
    arguments = _arguments()
    dataset = _cifar10(arguments.data / "cifar10")
    rows = []
    for depth in (20, 56):
        path = arguments.data / "checkpoints" / f"resnet{depth}-cifar10.th"
        original = load_network(path, architecture=f"cifar_resnet{depth}")
        analysis = analyse(original)
        for ratio in RATIOS:
            rows.append(
                {
                    "network": f"resnet{depth}",
                    "macs": ratio,
                    **_measure(original, analysis, ratio, dataset, arguments.images),
                }
            )
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _measure(
    original: Network, analysis: ChannelAnalysis, ratio: float, dataset: ImageDataset, images: int
) -> dict[str, Any]:
    keep = _keep(original, analysis, ratio)
    network = apply(original, analysis, keep)
    test = dataset.test.sample(images)
    rows = kept_channels(original, kept_indices(analysis, keep))
    row: dict[str, Any] = {
        "original": accuracy(original, test, dataset),
        "as pruned": accuracy(network, test, dataset),
    }
    for name, batches in {
        "gaussian": [original.random_inputs(EXAMPLES, seed=0)],
        "1/f": [(_pink_noise(original, seed=0),)],
        "images": [(dataset.prepare(dataset.train.sample(EXAMPLES).images),)],
    }.items():
        now, before = statistics(network, batches, CPU), statistics(original, batches, CPU)
        row[f"transfer, {name}"] = accuracy(transfer(network, now, before, rows), test, dataset)
        anew = {found_name: found.mean.float() for found_name, found in now.items()}
        anew |= {found.var_name: found.var.float() for found in now.values()}
        row[f"anew, {name}"] = accuracy(network.with_tensors({**network.tensors, **anew}), test, dataset)
        if name == "gaussian":
            held_out = [original.random_inputs(EXAMPLES, seed=1)]
            row["guard"] = transfer_guard(network, original, now, before, rows, held_out, CPU)
    return row


def _keep(original: Network, analysis: ChannelAnalysis, ratio: float) -> np.ndarray:
    """bool per component: the plan by magnitude for a share of the MACs."""
    method = get_method("magnitude")
    config = method.config({})
    constraints = Budget((Cap("macs", max_ratio=ratio),)).constraints(analysis.costs(analysis.full_widths))
    scores = method.scores(original, analysis, config, 0)
    return plan_widths(analysis, scores, constraints, method.plan_options(config)).keep


def _pink_noise(network: Network, seed: int) -> torch.Tensor:
    """Noise whose amplitude falls with spatial frequency, as in photographs; unit variance."""
    (white,) = network.random_inputs(EXAMPLES, seed)
    height, width = white.shape[2:]
    vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequency = (vertical.square() + horizontal.square()).sqrt().clamp(min=1 / max(height, width))
    pink = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    return pink / pink.std()


def _cifar10(shards: Path) -> ImageDataset:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "cifar10.tar"
        with tarfile.open(archive, "w") as tar:
            for shard in sorted(shards.glob("*.parquet")):
                tar.add(shard, arcname=shard.name)
        return load_dataset(archive, normalization=NORMALIZATION, seed=0)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    names = list(rows[0])
    table = Table(*names)
    for row in rows:
        table.add_row(*(_text(name, row[name]) for name in names))
    Console(highlight=False, width=180).print(table)


def _text(name: str, value: Any) -> str:
    if name == "guard":
        return f"{value[0]:.2f} → {value[1]:.2f}"
    return value if isinstance(value, str) else f"{100 * value:.1f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with checkpoints/ and cifar10/")
    parser.add_argument("--images", type=int, default=2000, help="test images, evenly spaced over the split")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
