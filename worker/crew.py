"""What the slots of one worker have in common, and how each is made from it: the same in every process of the worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from store.contract import SHORT_WORK, WorkKind
from worker.devices import JobSlot
from worker.probe import Confinement
from worker.process import DEFAULT_COMMANDS, RunnerSpec
from worker.slot import SlotSpec

# A runner that waits holds 0.3 GiB of imported engine; small machines have better uses for it.
LEAST_MEMORY_FOR_READY_RUNNERS = 6 * 2**30
MEMORY_PER_READY_RUNNER = 2**30
SHORT_WORK_INDEX = 0


@dataclass(frozen=True)
class Crew:
    """owner: begins the worker ids under which leases are held. scratch: where runner folders are made. job_slots: how
    many there are. commands: the runners' command table."""

    owner: str
    scratch: Path
    confinement: Confinement
    job_slots: int
    commands: str = DEFAULT_COMMANDS

    def short_work(self) -> SlotSpec:
        """The slot for plans and inspections, which also tells everyone what this worker can do."""
        return SlotSpec(
            name="short work",
            worker_id=f"{self.owner}short",
            kinds=SHORT_WORK,
            queues=(),
            runners=self._runners(SHORT_WORK_INDEX, threads=1, gpu="", scratch=self.scratch),
            keeps_ready=self._keeps_ready,
            replaces_early=True,
            catalogue=self._runners(SHORT_WORK_INDEX, threads=1, gpu=None, scratch=self.scratch),
        )

    def jobs(self, slot: JobSlot, *, scratch: Path | None = None, succeeds: bool = False) -> SlotSpec:
        """One of the slots for jobs; in a process of its own it has a scratch folder of its own."""
        runners = self._runners(SHORT_WORK_INDEX + 1 + slot.index, slot.threads, slot.gpu, scratch or self.scratch)
        return SlotSpec(
            name=f"jobs {slot.index}",
            worker_id=f"{self.owner}job-{slot.index}/",
            kinds={WorkKind.job},
            queues=slot.queues,
            runners=runners,
            keeps_ready=self._keeps_ready,
            succeeds=succeeds,
            gpus=slot.gpus,
        )

    @property
    def _keeps_ready(self) -> bool:
        wanted = LEAST_MEMORY_FOR_READY_RUNNERS + MEMORY_PER_READY_RUNNER * (self.job_slots - 1)
        return self.confinement.policy.memory_bytes >= wanted

    def _runners(self, index: int, threads: int, gpu: str | None, scratch: Path) -> RunnerSpec:
        """gpu: the devices that runners see, all of them for None, none for an empty text."""
        policy = self.confinement.for_slot(index)
        policy = dataclasses.replace(policy, gpu=gpu != "" and policy.gpu)
        return RunnerSpec(policy, scratch, threads, self.commands, gpu)


def served(slots: Collection[JobSlot]) -> tuple[str, ...]:
    """The queues that these slots serve together."""
    return tuple(sorted({queue for slot in slots for queue in slot.queues}))
