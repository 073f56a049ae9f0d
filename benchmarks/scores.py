"""What each score is worth: accuracy after cutting a trained network, before any training.

    python -m benchmarks.scores --data FOLDER [--nets 20 56] [--ratios 0.5 0.7] [--images 2000] [--json FILE]

FOLDER holds `checkpoints/resnet{20,56}-cifar10.th` and `cifar10/*.parquet`. Every method cuts each network onto shares of
its MACs, with its scores ranked globally and per layer; batch-norm statistics are transferred on 256 training images,
as recovery does first. Accuracy is on validation images, because a default is chosen by it; they are images that the
checkpoints were trained on, so only differences between rows mean something.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from core.analysis import ChannelAnalysis, analyse
from core.budget import Budget, Cap
from core.errors import EngineError
from core.intake import load_network
from core.methods import Method, get_method, method_infos
from core.network import Network
from core.planning import plan_widths
from core.recovery import ImageDataset, accuracy, load_dataset
from core.recovery.recalibration import kept_channels, statistics, transfer
from core.surgery import apply, kept_indices

NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EXAMPLES = 256
CPU = torch.device("cpu")


def main() -> None:
    arguments = _arguments()
    dataset = cifar10(arguments.data / "cifar10")
    rows = []
    for depth in arguments.nets:
        path = arguments.data / "checkpoints" / f"resnet{depth}-cifar10.th"
        original = load_network(path, architecture=f"cifar_resnet{depth}")
        analysis = analyse(original)
        validation = dataset.val.sample(arguments.images)
        whole = accuracy(original, validation, dataset)
        for name in (info.type for info in method_infos() if _scores(info.type)):
            for ranking in ("global", "per_layer"):
                row: dict[str, Any] = {"network": f"resnet{depth}", "method": name, "ranking": ranking, "whole": whole}
                for ratio in arguments.ratios:
                    row |= _measure(original, analysis, dataset, name, ranking, ratio, arguments.images)
                rows.append(row)
    _print(rows, arguments.ratios)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _scores(name: str) -> bool:
    """Whether a method ranks channels under a name of its own."""
    return isinstance(get_method(name), Method) and name != "auto"


def _measure(
    original: Network,
    analysis: ChannelAnalysis,
    dataset: ImageDataset,
    name: str,
    ranking: str,
    ratio: float,
    images: int,
) -> dict[str, Any]:
    """Accuracy at `ratio` of the MACs and the seconds that scoring took."""
    method = get_method(name)
    config = method.config({"ranking": ranking})
    constraints = Budget((Cap("macs", max_ratio=ratio),)).constraints(analysis.costs(analysis.full_widths))
    started = time.perf_counter()
    scores = method.scores(original, analysis, config, 0, dataset)
    seconds = time.perf_counter() - started
    try:
        keep = plan_widths(analysis, scores, constraints, method.plan_options(config)).keep
    except EngineError:
        return {f"{ratio:g}": None, "score_s": seconds}
    network = apply(original, analysis, keep)
    inputs = [(dataset.prepare(dataset.train.sample(EXAMPLES).images),)]
    now, before = statistics(network, inputs, CPU), statistics(original, inputs, CPU)
    recovered = transfer(network, now, before, kept_channels(original, kept_indices(analysis, keep)))
    return {f"{ratio:g}": accuracy(recovered, dataset.val.sample(images), dataset), "score_s": seconds}


def cifar10(
    shards: Path,
    train_images: int | None = None,
    test_images: int | None = None,
    train_shards: int | None = None,
) -> ImageDataset:
    """The Parquet shards of a folder, or so many of those with training images.

    train_images, test_images: only so many of them are kept, the second of validation and of test.
    """
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(archive_of(shards, Path(folder), train_shards), normalization=NORMALIZATION, seed=0)
    if train_images:
        dataset = replace(dataset, train=dataset.train.sample(train_images))
    if test_images:
        val, test = (split.sample(test_images) for split in (dataset.val, dataset.test))
        dataset = replace(dataset, val=val, test=test)
    return dataset


def archive_of(shards: Path, folder: Path, train_shards: int | None = None) -> Path:
    """The shards as an upload, written into `folder`."""
    archive = folder / "cifar10.tar"
    with tarfile.open(archive, "w") as tar:
        for shard in (*sorted(shards.glob("train*.parquet"))[:train_shards], *shards.glob("test*.parquet")):
            tar.add(shard, arcname=shard.name)
    return archive


def _print(rows: Sequence[dict[str, Any]], ratios: Sequence[float]) -> None:
    table = Table("network", "method", "ranking", "whole", *(f"{100 * ratio:g} % MACs" for ratio in ratios), "scoring")
    for row in rows:
        found = [row[f"{ratio:g}"] for ratio in ratios]
        cells = ["infeasible" if one is None else f"{100 * one:.1f} %" for one in (row["whole"], *found)]
        table.add_row(row["network"], row["method"], row["ranking"], *cells, f"{1e3 * row['score_s']:.0f} ms")
    Console(highlight=False, width=150).print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with checkpoints/ and cifar10/")
    parser.add_argument("--nets", nargs="+", type=int, default=[20, 56], choices=[20, 56])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 0.7])
    parser.add_argument("--images", type=int, default=2000, help="validation images, evenly spaced over the split")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
