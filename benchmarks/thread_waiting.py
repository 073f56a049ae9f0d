"""How should a runner's threads wait for one another? Training throughput with spinning and with sleeping threads.

    python -m benchmarks.thread_waiting [--busy N] [--seconds S]

Trains ResNet-20 on random images (batch 128, float32, seed 0, all cores) once with OpenMP's default and once with
OMP_WAIT_POLICY=PASSIVE, which is what runners get; each alone on the machine and beside N busy processes (default: half
of the cores). Prints images per second and the ratio.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRAIN = """
import sys, time, torch
from core.architectures import build
torch.manual_seed(0)
model = build("cifar_resnet20", {})
optimizer = torch.optim.SGD(model.parameters(), 0.01)
images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
steps, started, seconds = 0, None, float(sys.argv[1])
while started is None or time.monotonic() - started < seconds:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    steps += 1
    if started is None:
        started, steps = time.monotonic(), 0
print(steps * 128 / (time.monotonic() - started))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="busy processes beside it")
    parser.add_argument("--seconds", type=float, default=15.0, help="measured seconds per run")
    arguments = parser.parse_args()
    for busy in (0, arguments.busy):
        with _load(busy):
            spinning = _images_per_s(arguments.seconds, {})
            sleeping = _images_per_s(arguments.seconds, {"OMP_WAIT_POLICY": "PASSIVE"})
        print(
            f"{os.cpu_count()} cores, {busy} busy beside it: spinning {spinning:.0f} images/s, "
            f"sleeping {sleeping:.0f} images/s, ratio {sleeping / spinning:.2f}"
        )


def _images_per_s(seconds: float, environment: dict[str, str]) -> float:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    command = [sys.executable, "-c", _TRAIN, str(seconds)]
    done = subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


@contextmanager
def _load(processes: int) -> Iterator[None]:
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


if __name__ == "__main__":
    main()
