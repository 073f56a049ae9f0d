"""Latency as the contract defines it: ONNX Runtime on the CPU, one thread, batch 1."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from core.deliver.onnx_file import open_session
from core.network import Network

_WARM_UP = 5
_LONGEST_S = 1.5
_FEWEST_RUNS, _MOST_RUNS = 10, 500


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run: median and 95th percentile."""

    p50: float
    p95: float
    batch: int
    threads: int
    runtime: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_latency(path: Path, network: Network) -> Latency:
    """Time `path` (the network's ONNX file) for at most about 1.5 s."""
    session = open_session(path, threads=1)
    inputs = network.random_inputs(batch=1, seed=0)
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, inputs, strict=True)}
    for _ in range(_WARM_UP):
        session.run(None, feeds)
    times_s: list[float] = []
    stop = time.perf_counter() + _LONGEST_S
    while len(times_s) < _MOST_RUNS and (time.perf_counter() < stop or len(times_s) < _FEWEST_RUNS):
        started = time.perf_counter()
        session.run(None, feeds)
        times_s.append(time.perf_counter() - started)
    p50, p95 = (round(float(value) * 1e3, 4) for value in np.quantile(times_s, (0.5, 0.95)))
    return Latency(p50, p95, batch=1, threads=1, runtime=f"onnxruntime {onnxruntime.__version__}")
