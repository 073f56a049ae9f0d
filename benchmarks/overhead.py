"""What the service adds to a job: `pennyweight compress` over `pennyweightd serve`, beside `pennyweightd compress`.

    .venv/bin/python -m benchmarks.overhead [--architecture torchvision:resnet50] [--flops 50%] [--rounds 3]

Both commands get the same checkpoint (random weights, from a fixed seed), budget and outputs, each in a new process,
in turn; the time is that of the whole command: for the service upload, inspection, dispatch, the job in its sandbox,
and the download of the artifacts into a folder; for the engine alone what it takes to start. The server and the runner
that it keeps ready are there before. Both have one thread. Checks that both deliver the same weights, and prints the seconds
of each, the difference of the medians, and its share, and the machine's load average before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.architectures import build
from tests.stacks.stack import TIMING, OneMachine, wait_for

REST_S = 5.0
"""For the service to make its next runner ready."""

THREADS = {"OMP_NUM_THREADS": "1"}
"""Of the engine alone, as `OneMachine` sets it for the service."""


def checkpoint(architecture: str, path: Path) -> None:
    torch.manual_seed(0)
    save_file(build(architecture, {}).state_dict(), path)


def seconds(command: Sequence[str], folder: Path, environment: dict[str, str]) -> float:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command, "--output", str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    elapsed_s = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return elapsed_s


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="torchvision:resnet50")
    parser.add_argument("--flops", default="50%", help="the budget, as the commands take it")
    parser.add_argument("--outputs", default="onnx,safetensors,report")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    TIMING.clear()  # the tests' are quicker than the defaults
    with contextlib.ExitStack() as kept:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="pennyweight-overhead-")))
        folder.chmod(0o755)
        model = folder / "model.safetensors"
        checkpoint(given.architecture, model)
        (folder / "one").mkdir()
        machine = kept.enter_context(contextlib.closing(OneMachine(folder / "one", scripted=False)))
        wait_for(lambda: machine.client.get("/readyz").json()["worker"]["status"] == "ok")
        options = [str(model), "--architecture", given.architecture, "--flops", given.flops, "--outputs", given.outputs]
        served, alone = [], []
        load_before = os.getloadavg()[0]
        for turn in range(given.rounds):
            time.sleep(REST_S)
            out = folder / f"served{turn}", folder / f"alone{turn}"
            client = {"PENNYWEIGHT_URL": str(machine.client.base_url)}
            served.append(seconds(["pennyweight.cli", "compress", *options], out[0], client))
            alone.append(seconds(["pennyweightd", "compress", *options], out[1], THREADS))
            print(f"the service {served[-1]:.1f} s, the engine alone {alone[-1]:.1f} s", flush=True)
            if digest(out[0]) != digest(out[1]):
                raise RuntimeError("The service and the engine deliver different weights.")
    service_s, engine_s = statistics.median(served), statistics.median(alone)
    print(
        f"{given.architecture}, {model_mib(given.architecture):.0f} MiB: the service {service_s:.1f} s, the engine alone "
        f"{engine_s:.1f} s, so the service adds {service_s - engine_s:+.1f} s ({service_s / engine_s - 1:+.1%}); "
        f"medians of {given.rounds}; load {load_before:.1f} to {os.getloadavg()[0]:.1f}"
    )


def model_mib(architecture: str) -> float:
    return sum(tensor.nbytes for tensor in build(architecture, {}).state_dict().values()) / 2**20


if __name__ == "__main__":
    main()
