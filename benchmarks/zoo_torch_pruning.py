"""Torch-Pruning on one network of the sweep, as its users run it.

    python -m benchmarks.zoo_torch_pruning ROW_FILE NAME [--ratio 0.5] [--image-size 64] [--seed 0]

Fang et al., DepGraph (arXiv 2301.12900), version 1.6.1: `MetaPruner` with `MagnitudeImportance(p=2)`, global ranking, the
classifier ignored, twenty steps of equal size, until its own counter says that the budget is met. No hints per model.
Time is that of tracing its graph and of the pruning steps; counting between the steps is left out. The weights are the
same as ours: same name, same seed.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.zoo import Row, build_network, write_row

STEPS = 20


def prune(
    name: str,
    row: Row,
    *,
    ratio: float,
    seed: int,
    image_size: int | None,
    tell: Callable[[Row], None],
) -> None:
    """Fill `row` and tell of every stage; what Torch-Pruning raises is raised."""
    import torch_pruning

    module, shape = build_network(name, seed=seed, image_size=image_size)
    example = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    counted, before = _macs(module, example), torch_pruning.utils.count_ops_and_params(module, example)[0]
    row["stage"] = "graph"
    tell(row)
    started = time.perf_counter()
    pruner = torch_pruning.pruner.MetaPruner(
        module,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=_classifiers(module, example),
    )
    row |= {"stage": "prune", "graph_s": round(time.perf_counter() - started, 4), "prune_s": 0.0, "own_ratio": 1.0}
    for step in range(STEPS):
        tell(row)
        started = time.perf_counter()
        pruner.step()
        row["prune_s"] = round(row["prune_s"] + time.perf_counter() - started, 4)
        row |= {"steps": step + 1, "own_ratio": torch_pruning.utils.count_ops_and_params(module, example)[0] / before}
        if row["own_ratio"] <= ratio:
            break
    row["seconds"] = round(row["graph_s"] + row["prune_s"], 4)
    row["stage"] = "forward"
    row["ratio"] = _macs(module, example) / counted
    widths = [layer.out_channels for layer in module.modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    row["smallest_width"] = min(widths, default=None)
    row["status"] = "pruned" if row["own_ratio"] <= ratio else "unmet"


def _classifiers(module: nn.Module, example: torch.Tensor) -> list[nn.Module]:
    """The last layer that makes the output's channels."""
    with torch.no_grad():
        output = torch.utils._pytree.tree_leaves(module(example))[0]
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))]
    widths = [layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in layers]
    return [layer for layer, width in zip(layers, widths, strict=True) if width == output.shape[1]][-1:]


def _macs(module: nn.Module, example: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    return counter.get_total_flops() // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row_file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    row: Row = {"name": arguments.name, "status": "failed", "stage": "build"}
    tell = functools.partial(write_row, arguments.row_file)
    tell(row)
    try:
        prune(
            arguments.name,
            row,
            ratio=arguments.ratio,
            seed=arguments.seed,
            image_size=arguments.image_size,
            tell=tell,
        )
    except Exception as error:  # a row of the table, whatever it is
        row["error"] = f"{type(error).__name__} in {row['stage']}: {error}"[:300]
    tell(row)


if __name__ == "__main__":
    main()
