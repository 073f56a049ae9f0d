"""How far a job is, put together from its runner's messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from store.contract import JobProgress, StageProgress
from worker.protocol import ProgressMessage, ProtocolError

# The engine's stages in order, with the share of a typical run that each takes; training outweighs everything.
STAGE_SHARES = {
    "intake": 0.10,
    "profile": 0.05,
    "plan": 0.05,
    "apply": 0.05,
    "verify": 0.10,
    "recover": 0.45,
    "deliver": 0.20,
}
# A stage that this table does not know yet gets no share, but is shown. The engine may repeat stages. Beyond these
# numbers a runner is not working but talking.
MAX_STAGES = 32
MAX_STAGE_CHANGES = 1000
MAX_EPOCHS = 10_000
# An estimate from less than this fraction would be noise.
ESTIMATE_FROM = 0.1


class ProgressBoard:
    """The state of every stage and one fraction that never goes back, even when the engine repeats stages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._stages = {name: StageProgress(name=name, status="pending") for name in STAGE_SHARES}
        self._fraction = 0.0
        self._changes = 0
        self._epochs = 0
        self.stage: str | None = None

    def apply(self, message: ProgressMessage) -> bool:
        """Take one message in; whether the job has entered another stage. Raises ProtocolError."""
        if message.stage not in self._stages and len(self._stages) >= MAX_STAGES:
            raise ProtocolError(f"The runner reported more than {MAX_STAGES} stages.")
        entered = message.status == "running" and message.stage != self.stage
        if entered:
            self._changes += 1
            if self._changes > MAX_STAGE_CHANGES:
                raise ProtocolError(f"The runner changed its stage more than {MAX_STAGE_CHANGES} times.")
            self._close(self.stage)
            self.stage = message.stage
        self._stages[message.stage] = StageProgress(
            name=message.stage,
            status=message.status,
            step=message.step,
            steps=message.steps,
            message=_shown(message.message) if message.status == "running" else None,
        )
        self._fraction = max(self._fraction, self._measure())
        return entered

    def count_epoch(self) -> None:
        """Take note of one more epoch of training. Raises ProtocolError."""
        self._epochs += 1
        if self._epochs > MAX_EPOCHS:
            raise ProtocolError(f"The runner reported more than {MAX_EPOCHS} epochs.")

    def snapshot(self) -> JobProgress:
        elapsed = self._clock() - self._started
        eta_s = round(elapsed / self._fraction * (1 - self._fraction), 1) if self._fraction >= ESTIMATE_FROM else None
        return JobProgress(
            fraction=round(self._fraction, 4),
            eta_s=eta_s,
            updated_at=datetime.now(UTC),
            stages=list(self._stages.values()),
        )

    def _close(self, name: str | None) -> None:
        """A stage that the engine has left behind is over, whether or not it said so."""
        if name is not None and self._stages[name].status == "running":
            self._stages[name] = self._stages[name].model_copy(update={"status": "succeeded", "message": None})

    def _measure(self) -> float:
        return min(1.0, sum(STAGE_SHARES.get(name, 0.0) * _done(stage) for name, stage in self._stages.items()))


def _shown(text: str | None) -> str | None:
    """Without what a terminal would act on: the text may come from a runner that was taken over."""
    return "".join(character for character in text if character.isprintable()) or None if text else None


def _done(stage: StageProgress) -> float:
    if stage.status in ("succeeded", "skipped"):
        return 1.0
    if stage.status == "running" and stage.step and stage.steps:
        return min(1.0, max(0.0, stage.step / stage.steps))
    return 0.0
