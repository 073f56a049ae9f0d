"""Two methods for one request, of which a short trial takes the better: what `auto` does where there are images.

    widths planned, cut, corrected in closed form  ──┐
                                                     ├── held-out images ── the better one goes on and is trained
    kernels shared, fitted in closed form          ──┘

Neither is trained for it. What is measured is what goes on, so that what is delivered is no worse on held-out images than
the other was. The trial is bounded by counts, not by a clock, so that a run can be repeated: it fits to fewer images, or is
left out, where it would take too long. It is left out, too, where the first way loses next to nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.budget import Constraint
from core.checkpoint import Checkpoint, Saved
from core.choice import Choice, Chooser
from core.errors import EngineError
from core.origin import Origin
from core.penni.effort import fitting_macs
from core.progress import ProgressEvent, Stages
from core.recovery import ImageDataset
from core.recovery.corrections import MIN_REFIT_EXAMPLES, corrections
from core.recovery.judges import AccuracyJudge, OutputJudge, judge_for
from core.rewriting import Rewriter
from core.surgery import apply, kept_indices

# The request that a trial is made for, and what is tried beside the method that it names.
AUTO: Mapping[str, Any] = {"type": "auto"}
RIVAL: Mapping[str, Any] = {"type": "penni"}
# Multiply-accumulates of the fits: about a seventh of what training takes at most by default.
TRIAL_MACS = {"cpu": 6e12, "cuda": 6e14}
# What may be lost before anything else is worth trying, by the judge's measure.
NEXT_TO_NOTHING = {"validation_accuracy": 0.01, "output_error": 0.05}
# A rival that fails never ends the run: whatever it says, the first way goes on.
_FAILED = "Shared kernels failed beside removed channels, which go on: %s"
_EXAMPLES = (512, 256, 128, 64, 32, MIN_REFIT_EXAMPLES)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Rivals:
    """chooser: of widths, which is what is proposed, too. rewriter: what may take its place once there are images."""

    chooser: Chooser
    rewriter: Rewriter
    origin: Origin
    device: torch.device

    def choose(self, constraints: Sequence[Constraint]) -> Choice:
        return self.chooser.choose(constraints)

    def nearest(self, constraints: Sequence[Constraint]) -> Choice:
        return self.chooser.nearest(constraints)

    def decide(
        self,
        constraints: Sequence[Constraint],
        choice: Choice,
        dataset: ImageDataset | None,
        stages: Stages,
        checkpoint: Checkpoint,
        step: str,
    ) -> tuple[Chooser | Rewriter, dict[str, Any] | None]:
        """Who goes on, and the trial for the report; None where there was nothing to try on. choice: the chooser's plan."""
        if dataset is None or all(cap.met_by(self.origin.costs) for cap in constraints):
            return self.chooser, None
        examples = next((count for count in _EXAMPLES if self._bounded(count)), 0)
        if min(examples, len(dataset.train)) < MIN_REFIT_EXAMPLES:
            reason = "Too few images, or a network so large that its fits would take longer than a trial may."
            return self.chooser, {"taken": "magnitude", "reason": reason}
        rewriter = self.rewriter.limited(examples)
        saved = checkpoint.finished(f"{step}/trial")
        if saved is None:
            stages.listener(ProgressEvent("plan", message="Trying shared kernels beside removed channels"))
            saved = Saved(self._tried(rewriter, constraints, choice, dataset, stages, checkpoint, step))
            checkpoint.finish(f"{step}/trial", saved)
        else:
            checkpoint.use(f"{step}/trial")
        report = dict(saved.values)
        return (rewriter if report["taken"] == "penni" else self.chooser), report

    @staticmethod
    def given_up(trial: Mapping[str, Any], refusal: EngineError) -> dict[str, Any]:
        """The trial's report after the rival came to nothing, in the trial or after it."""
        logger.warning(_FAILED, refusal)
        return {**trial, "taken": "magnitude", "reason": refusal.message}

    def _bounded(self, examples: int) -> bool:
        return fitting_macs(self.origin.network, examples) <= TRIAL_MACS.get(self.device.type, TRIAL_MACS["cpu"])

    def _tried(
        self,
        rewriter: Rewriter,
        constraints: Sequence[Constraint],
        choice: Choice,
        dataset: ImageDataset,
        stages: Stages,
        checkpoint: Checkpoint,
        step: str,
    ) -> dict[str, Any]:
        began = time.monotonic()
        original = self.origin.network
        judge = judge_for(original, dataset, self.device)
        removed = self._removed(choice, dataset, judge)
        found = {"measure": judge.measure, "magnitude": round(removed, 6)}
        if abs(judge.value(original) - removed) <= NEXT_TO_NOTHING[judge.measure]:
            return {"taken": "magnitude", **found, "reason": "Removing channels loses next to nothing."}
        try:
            work = rewriter.work(constraints, dataset, stages, checkpoint, step)
            shared = judge.value(work.rewriting.reference(work.rewriting.network))
        except EngineError as refusal:
            return self.given_up(found, refusal)
        return {
            "taken": "magnitude" if judge.no_worse(removed, shared) else "penni",
            **found,
            "penni": round(shared, 6),
            "examples": work.rewriting.report["fit"]["examples"],
            "seconds": round(time.monotonic() - began, 3),
        }

    def _removed(self, choice: Choice, dataset: ImageDataset, judge: AccuracyJudge | OutputJudge) -> float:
        """The best figure of the narrow network and its closed-form corrections."""
        original = self.origin.network
        pruned = apply(original, choice.analysis, choice.plan.keep)
        kept = kept_indices(choice.analysis, choice.plan.keep)
        best = judge.value(pruned)
        for one in corrections(pruned, original, dataset, kept, self.device):
            value = judge.value(one.network) if one.network is not None else best
            best = value if judge.no_worse(value, best) else best
        return best
