"""The stage bar: one line per stage of a job, a percentage and a remaining time, redrawn while the job runs."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


class StageBar:
    """Shows a job resource as it changes; on a terminal as a bar, elsewhere as one line per stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: tuple[str | None, str] | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=32),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("queued", total=1.0, detail="")

    def __enter__(self) -> StageBar:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """One line that stays, above the bar."""
        self._console.print(line, highlight=False, markup=False)

    def __call__(self, job: Mapping[str, Any]) -> None:
        progress = job.get("progress") or {}
        stage = job.get("stage") if job["status"] == "running" else None
        if not self._console.is_terminal:
            if self._told != (stage, job["status"]):
                self._told = (stage, job["status"])
                self._console.print(f"{job['status']}{f': {stage}' if stage else ''}", highlight=False)
            return
        self._progress.update(
            self._task,
            description=stage or job["status"],
            completed=float(progress.get("fraction") or 0.0),
            detail=_detail(progress, stage),
        )


def _detail(progress: Mapping[str, Any], stage: str | None) -> str:
    words = []
    current = next((s for s in progress.get("stages") or [] if s["name"] == stage), None)
    if current and current.get("steps"):
        words.append(f"step {current.get('step') or 0}/{current['steps']}")
    if progress.get("eta_s") is not None:
        words.append(f"about {duration(progress['eta_s'])} left")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """9 s, 4 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
