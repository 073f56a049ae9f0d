"""The slots of one machine and the queues they serve: one for each GPU or for several together, or some for the CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass

from worker.view import gpu_devices

QUEUES = ("gpu", "cpu")


class NoSuchDevice(Exception):
    """A queue was asked for that nothing here can serve; the message says what to do."""


@dataclass(frozen=True)
class JobSlot:
    """gpu: what `CUDA_VISIBLE_DEVICES` says to the runners of this slot, one name or several; empty for none."""

    index: int
    queues: Collection[str]
    gpu: str
    threads: int

    @property
    def gpus(self) -> int:
        return len(self.gpu.split(",")) if self.gpu else 0


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    devices = [path for path in gpu_devices() if re.fullmatch(r"/dev/nvidia[0-9]+", path)]
    # CUDA numbers what it sees, whatever the device files are called.
    return [str(number) for number in range(len(devices))]


def job_slots(queues: Collection[str] | None = None, cpu_slots: int = 1, gpus_per_slot: int = 1) -> list[JobSlot]:
    """The slots for these queues, by default for all that can be served here; GPUs that are too few for a slot of their
    own go to the last one. Raises NoSuchDevice."""
    gpus = visible_gpus()
    queues = tuple(queues or (QUEUES if gpus else ("cpu",)))
    if "gpu" not in queues:
        threads = max(1, available_cores() // cpu_slots)
        return [JobSlot(index, queues, "", threads) for index in range(cpu_slots)]
    if not gpus:
        raise NoSuchDevice(
            "The queue gpu was asked for and there is no GPU here (no /dev/nvidia*, or CUDA_VISIBLE_DEVICES is empty). "
            "Serve --queues cpu, or give this worker a GPU."
        )
    count = max(1, len(gpus) // gpus_per_slot)
    starts = [index * gpus_per_slot for index in range(count)]
    shares = [gpus[start:end] for start, end in zip(starts, [*starts[1:], len(gpus)], strict=True)]
    threads = max(1, available_cores() // count)
    return [JobSlot(index, queues, ",".join(share), threads) for index, share in enumerate(shares)]


def available_cores() -> int:
    """The cores that this process may use; OMP_NUM_THREADS, where it is set, says fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) > 0 else cores
