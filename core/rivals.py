"""Two methods for one request, of which a short trial takes the better: what `auto` does where there are images.

    widths planned, cut, corrected in closed form  ──┐
                                                     ├── held-out images ── the better one goes on and is trained
    kernels shared, fitted in closed form          ──┘

Neither is trained for it. What is measured is what goes on, so that what is delivered is no worse on held-out images
than the other was. The trial is bounded by counts, not by a clock, so that a run can be repeated: it fits to fewer
images, or is left out, where it would take too long. It is left out, too, where the first way loses next to nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.budget import Constraint
from core.checkpoint import Saved
from core.choice import Choice, Chooser
from core.cut import Cut
from core.errors import EngineError, memory_as_refusal
from core.penni.effort import fitting_macs
from core.penni.pace import steps_onto
from core.progress import ProgressEvent
from core.recovery.corrections import MIN_REFIT_EXAMPLES, corrections
from core.recovery.judges import AccuracyJudge, OutputJudge, judge_for
from core.rewriting import Rewriter
from core.run import Made, Run

# The request that a trial is made for, and what is tried beside the method that it names.
AUTO: Mapping[str, Any] = {"type": "auto"}
RIVAL: Mapping[str, Any] = {"type": "penni"}
# Multiply-accumulates of the fits: about a seventh of what training takes at most by default.
TRIAL_MACS = {"cpu": 6e12, "cuda": 6e14}
# What may be lost before anything else is worth trying, by the judge's measure.
NEXT_TO_NOTHING = {"validation_accuracy": 0.01, "output_error": 0.05}
# A rival that fails never ends the run: whatever it says, and where it lacks memory, the first way goes on.
_SHARED_KERNELS = "fitting and training shared kernels"
_FAILED = "Shared kernels failed beside removed channels, which go on: %s"
_EXAMPLES = (512, 256, 128, 64, 32, MIN_REFIT_EXAMPLES)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Rivals:
    """chooser: of widths, which is what is proposed, too. rewriter: what may take its place once there are images."""

    chooser: Chooser
    rewriter: Rewriter

    def choose(self, constraints: Sequence[Constraint]) -> Choice:
        return self.chooser.choose(constraints)

    def nearest(self, constraints: Sequence[Constraint]) -> Choice:
        return self.chooser.nearest(constraints)

    def rewritten(
        self, run: Run, constraints: Sequence[Constraint], choice: Choice, step: str
    ) -> tuple[Made | None, dict[str, Any] | None]:
        """The rewriter's network, None where the chooser goes on; and the trial for the report, None where there was
        nothing to try on. choice: the chooser's plan."""
        with run.stages.run("plan"):
            rewriter, trial = self._decided(run, constraints, choice, step)
        if rewriter is None:
            return None, trial
        try:
            with memory_as_refusal(_SHARED_KERNELS):
                return rewriter.make(run, constraints, step), trial
        except EngineError as refusal:
            return None, _given_up(trial, refusal)

    def _decided(
        self, run: Run, constraints: Sequence[Constraint], choice: Choice, step: str
    ) -> tuple[Rewriter | None, dict[str, Any] | None]:
        if run.dataset is None or all(cap.met_by(run.origin.costs) for cap in constraints):
            return None, None
        examples = next((count for count in _EXAMPLES if _bounded(run, constraints, count)), 0)
        if min(examples, len(run.dataset.train)) < MIN_REFIT_EXAMPLES:
            reason = "Too few images, or a network so large that its fits would take longer than a trial may."
            return None, {"taken": "magnitude", "reason": reason}
        rewriter = self.rewriter.limited(examples)
        saved = run.checkpoint.finished(f"{step}/trial")
        if saved is None:
            run.stages.listener(ProgressEvent("plan", message="Trying shared kernels beside removed channels"))
            saved = Saved(_tried(rewriter, run, constraints, choice, step))
            run.checkpoint.finish(f"{step}/trial", saved)
        else:
            run.checkpoint.use(f"{step}/trial")
        report = dict(saved.values)
        return (rewriter if report["taken"] == "penni" else None), report


def _given_up(trial: Mapping[str, Any], refusal: EngineError) -> dict[str, Any]:
    """The trial's report after the rival came to nothing, in the trial or after it."""
    logger.warning(_FAILED, refusal)
    return {**trial, "taken": "magnitude", "reason": refusal.message}


def _bounded(run: Run, constraints: Sequence[Constraint], examples: int) -> bool:
    steps = steps_onto((cap, run.origin.costs) for cap in constraints)
    return fitting_macs(run.origin.network, examples, steps) <= TRIAL_MACS.get(run.device.type, TRIAL_MACS["cpu"])


def _tried(
    rewriter: Rewriter, run: Run, constraints: Sequence[Constraint], choice: Choice, step: str
) -> dict[str, Any]:
    began = time.monotonic()
    original = run.origin.network
    judge = judge_for(original, run.dataset, run.device)
    removed = _removed(run, choice, judge)
    found = {"measure": judge.measure, "magnitude": round(removed, 6)}
    if abs(judge.of_original - removed) <= NEXT_TO_NOTHING[judge.measure]:
        return {"taken": "magnitude", **found, "reason": "Removing channels loses next to nothing."}
    try:
        with memory_as_refusal(_SHARED_KERNELS):
            work = rewriter.work(run, constraints, step)
            shared = judge.value(work.rewriting.reference(work.rewriting.network))
    except EngineError as refusal:
        return _given_up(found, refusal)
    return {
        "taken": "magnitude" if judge.no_worse(removed, shared) else "penni",
        **found,
        "penni": round(shared, 6),
        "examples": work.rewriting.report["fit"]["examples"],
        "seconds": round(time.monotonic() - began, 3),
    }


def _removed(run: Run, choice: Choice, judge: AccuracyJudge | OutputJudge) -> float:
    """The best figure of the narrow network and its closed-form corrections."""
    cut = Cut.of(run.origin.network, choice)
    best = judge.value(cut.pruned)
    for one in corrections(cut.pruned, cut.network, run.dataset, cut.kept, run.device):
        value = judge.value(one.network) if one.network is not None else best
        best = value if judge.no_worse(value, best) else best
    return best
