"""Latency as the contract defines it: ONNX Runtime on the CPU, one thread, batch 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from core.deliver.onnx_file import open_session
from core.network import Network

_WARM_UP, _WARM_UP_S = 5, 0.5
_LONGEST_S = 2.0
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


def measure_latencies(models: Sequence[tuple[Path, Network]]) -> list[Latency]:
    """Time each ONNX file with inputs of its network, for about two seconds in all.

    They take turns run by run, so that whatever else the machine does meets all of them alike.
    """
    runs = [_runner(path, network) for path, network in models]
    warm = time.perf_counter() + _WARM_UP_S
    for round_index in range(_WARM_UP):
        if round_index == 0 or time.perf_counter() < warm:
            for run in runs:
                run()
    times_s: list[list[float]] = [[] for _ in runs]
    stop = time.perf_counter() + _LONGEST_S
    while len(times_s[0]) < _MOST_RUNS and (time.perf_counter() < stop or len(times_s[0]) < _FEWEST_RUNS):
        for run, found in zip(runs, times_s, strict=True):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
    return [_latency(found) for found in times_s]


def measure_latency(path: Path, network: Network) -> Latency:
    """Time one ONNX file by itself."""
    (latency,) = measure_latencies([(path, network)])
    return latency


def _runner(path: Path, network: Network) -> Callable[[], object]:
    session = open_session(path, threads=1)
    inputs = network.random_inputs(batch=1, seed=0)
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, inputs, strict=True)}
    return lambda: session.run(None, feeds)


def _latency(times_s: Sequence[float]) -> Latency:
    p50, p95 = (round(float(value) * 1e3, 4) for value in np.quantile(times_s, (0.5, 0.95)))
    return Latency(p50, p95, batch=1, threads=1, runtime=f"onnxruntime {onnxruntime.__version__}")
