"""Networks for the benchmarks: any registered architecture with random weights in which nothing is blind.

A freshly made network hides mistakes: batch-norms that are the identity, residual branches that end in a zero, layer
scales of 1e-6, heads of zeros. Here all of these are drawn by seed. Batch-norm statistics are those of a random batch,
then disturbed, so that signals neither die nor explode on their way through a deep network.

    python -m benchmarks.zoo NAME …        what a network is: input, parameters, MACs, nodes
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.architectures import build, get_architecture
from core.budget import Budget, Cap
from core.network import Network

NAMES_FILE = Path(__file__).with_name("zoo_names.txt")
_ROOT = Path(__file__).parents[1]

Row = dict[str, Any]


def read_names(path: Path = NAMES_FILE) -> list[str]:
    """One name per line; `#` starts a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def build_network(name: str, *, seed: int = 0, image_size: int | None = None) -> tuple[nn.Module, tuple[int, ...]]:
    """The module in eval mode with drawn weights, and the shape of its input without the batch dimension.

    image_size: height and width in place of the architecture's own.
    """
    architecture = get_architecture(name)
    args = architecture.resolve({})
    if image_size is not None and architecture.size_argument is not None:
        kind = architecture.args_schema["properties"][architecture.size_argument]["type"]
        args[architecture.size_argument] = image_size if kind == "integer" else [image_size, image_size]
    shape = architecture.input_shape(args)
    if image_size is not None:
        shape = (*shape[:-2], image_size, image_size)
    torch.manual_seed(seed)
    module = architecture.for_inference(build(name, args)).eval()
    randomise(module, shape, seed)
    return module, shape


def export(name: str, *, seed: int = 0, image_size: int | None = None) -> Network:
    """The same as a `Network`."""
    module, shape = build_network(name, seed=seed, image_size=image_size)
    return Network.from_module(module, {"input": shape}, architecture=name)


@torch.no_grad()
def randomise(module: nn.Module, shape: Sequence[int], seed: int) -> None:
    """Draw every constant parameter anew, then the statistics of every batch-norm around those of a random batch."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        _draw_if_constant(parameter, generator)
    handles = [
        norm.register_forward_pre_hook(lambda norm, inputs: _draw_statistics(norm, inputs[0], generator))
        for norm in module.modules()
        if isinstance(getattr(norm, "running_var", None), Tensor)
    ]
    if handles:
        module(torch.randn((4, *shape), generator=generator))
    for handle in handles:
        handle.remove()


def _draw_if_constant(parameter: Tensor, generator: torch.Generator) -> None:
    value = parameter.flatten()[0]
    if parameter.numel() > 1 and not bool((parameter == value).all()):
        return
    if parameter.numel() > max(parameter.shape, default=1):  # a head or a table, zero before training
        parameter.normal_(0, 1 / math.sqrt(math.prod(parameter.shape[1:])), generator=generator)
    elif value == 0 and parameter.numel() > 1:  # biases
        parameter.normal_(0, 0.2, generator=generator)
    else:  # gains and layer scales
        parameter.uniform_(0.5, 1.5, generator=generator)


def _draw_statistics(norm: nn.Module, inputs: Tensor, generator: torch.Generator) -> None:
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    variance, mean = torch.var_mean(inputs, dim=axes, correction=0)
    variance += 0.1 * variance.mean() + 1e-3
    noise = torch.empty_like(mean).normal_(0, 0.3, generator=generator)
    norm.running_mean.copy_(mean + noise * variance.sqrt())
    norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.5, 1.5, generator=generator))


def parse_budget(text: str) -> Budget:
    """`macs=0.5+params=0.4+memory.activations=0.6`: caps as ratios of the original."""
    caps = []
    for part in text.split("+"):
        metric, _, ratio = part.partition("=")
        metric, _, kind = metric.partition(".")
        caps.append(Cap(metric, max_ratio=float(ratio), kind=kind or None))
    return Budget(tuple(caps))


def in_own_process(module: str, arguments: Iterable[str], *, limit_s: float) -> Row:
    """Run `python -m module ROW_FILE arguments…` and read the row that it wrote, as far as it came.

    A process that dies, or is stopped at its limit, still yields the row of the stages that it had finished, with
    `status` "crashed" or "hung" and `error` saying where.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        started = time.perf_counter()
        command = [sys.executable, "-m", module, str(path), *arguments]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, cwd=_ROOT, stdout=log, stderr=subprocess.STDOUT)
            try:
                process.wait(timeout=limit_s)
                hung = False
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                hung = True
            log.seek(0)
            tail = log.read().strip().splitlines()[-1:]
        row = json.loads(path.read_text()) if path.exists() else {}
        row["wall_s"] = round(time.perf_counter() - started, 2)
        stage = row.get("stage", "start")
        if hung:
            row |= {"status": "hung", "error": f"still in {stage} after {limit_s:g} s"}
        elif process.returncode != 0:
            row |= {"status": "crashed", "error": f"exit status {process.returncode} in {stage}: {' '.join(tail)}"}
        return row


def write_row(path: Path, row: Row | list[Row]) -> None:
    """Whole or not at all: the process may be stopped at any moment."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(row, default=str))
    fresh.replace(path)


def main() -> None:
    for name in sys.argv[1:]:
        network = export(name)
        params = sum(network.tensors[parameter].numel() for parameter in network.parameter_names)
        print(f"{name}: input {list(network.inputs[0].shape)}, {params:,} parameters, {len(network.graph.nodes)} nodes")


if __name__ == "__main__":
    main()
