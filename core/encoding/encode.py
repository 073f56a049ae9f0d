"""The encode stage: a network's kernels onto few shared values, onto a cap on the file where there is one.

    kernels ── prune ── groups ── share ─┬─ every weight by itself ──────────────┬─ the better ── fine-tune ── the better
                                         └─ layers make up for each other ───────┘

What comes back is the network with exactly the values that every delivered file holds, so that what is measured is what is
delivered. What has been shared and how far fine-tuning is are in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from core.checkpoint import Checkpoint
from core.deliver.pwt_file import Compact, measured_pwt, skeleton_of
from core.encoding.compensation import compensated
from core.encoding.container import PwtSummary
from core.encoding.description import describe_encoding
from core.encoding.fine_tuning import fine_tune_shared, plan_run
from core.encoding.judge import Judge
from core.encoding.kernels import Shared, find_kernels, grouped
from core.encoding.options import EncodingOptions
from core.encoding.saved import packed, unpacked
from core.encoding.sensitivity import sensitivities
from core.encoding.sharing import Landing, Rounding, Size, choices_at, rounded
from core.network import Network
from core.progress import Progress, ProgressEvent
from core.recovery import ImageDataset, Recovered
from core.recovery.corrections import MIN_REFIT_EXAMPLES, refit_examples
from core.recovery.steps import Steps

# Of each tensor: what a header with the checksums of other values may take more.
_SPARE_BYTES = 2


@dataclass(frozen=True)
class Encoded:
    """The network to deliver.

    compact: how it is stored; with details, JSON for the report, None where no encoding and no `model.pwt` was asked for.
    accuracy_after, validation_drop: as in `Recovered`, of this network.
    """

    network: Network
    compact: Compact | None = None
    details: dict[str, Any] | None = None
    accuracy_after: float | None = None
    validation_drop: float | None = None

    @staticmethod
    def unchanged(
        recovered: Recovered, compact: Compact | None = None, details: dict[str, Any] | None = None
    ) -> Encoded:
        return Encoded(recovered.network, compact, details, recovered.accuracy_after, recovered.validation_drop)


def encode(
    recovered: Recovered,
    original: Network,
    dataset: ImageDataset | None,
    options: EncodingOptions,
    *,
    stored: bool,
    size_limit: int | None,
    opset: int | None = None,
    seed: int,
    device: torch.device,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
    step: str = "encode",
) -> Encoded:
    """Encode what recovery left; there is something to do (`Steering.encodes`).

    stored: whether `model.pwt` is asked for. size_limit: bytes that it may take; one that cannot be reached gives the
    smallest file there is, and whoever asked has to look. opset: of the ONNX file that it turns back into. checkpoint: what an
    interrupted run left, and where this one keeps its own, under names that begin with `step`.
    """
    network = recovered.network
    skeleton = skeleton_of(network, opset) if stored else None
    if not options.lossy:
        compact = Compact({}, skeleton, options.format)
        details = describe_encoding(options, compact, measured_pwt(network, compact))
        return Encoded.unchanged(recovered, compact, details)

    def tell(message: str, step: int | None = None, steps: int | None = None) -> None:
        progress(ProgressEvent("encode", message=message, step=step, steps=steps))

    def stored_as(found: Shared) -> tuple[Compact, PwtSummary]:
        """How the finished network is stored, with the skeleton of its own values."""
        compact = Compact(found.tensors, skeleton_of(found.network, opset) if stored else None, options.format)
        return compact, measured_pwt(found.network, compact)

    def size(found: Shared) -> int:
        return measured_pwt(found.network, Compact(found.tensors, skeleton, options.format)).file_bytes

    tunes = dataset is not None and options.epochs != 0
    room = _SPARE_BYTES * len(network.tensors) if tunes else 0
    limit = None if size_limit is None or not stored else size_limit - room
    judge = Judge(original, network, dataset, device)
    steps = Steps(checkpoint or Checkpoint(), step, network)
    final, after, scores = _shared(network, dataset, options, limit, size, judge, steps, tell, seed, device)
    tuning: dict[str, Any] = {"epochs": 0}
    compact, summary = stored_as(final)
    if tunes and final.tensors:
        run = plan_run(network, len(dataset.train), options.epochs, device)

        def tell_step(step: int, message: str) -> None:
            tell(message, step, run.steps)

        learnt = fine_tune_shared(final, original, dataset, run, seed=seed, device=device, tell=tell_step, steps=steps)
        tuning = {"epochs": round(run.epochs, 3), "steps": run.steps, "batch_size": run.batch}
        tuning["kept"] = False
        if learnt is not None:
            scores["fine_tuned"] = judge.score(learnt.network)
            tuned = stored_as(learnt)
            fits = size_limit is None or tuned[1].file_bytes <= max(size_limit, summary.file_bytes)
            if fits and not judge.worse(scores["fine_tuned"], after):
                final, after, tuning["kept"] = learnt, scores["fine_tuned"], True
                compact, summary = tuned
    tell("Measuring the result")
    details = describe_encoding(options, compact, summary)
    details |= {"fine_tuning": tuning, judge.measure: scores}
    if not judge.labelled:
        return Encoded(final.network, compact, details)
    test = judge.test_accuracy(final.network)
    details["accuracy"] = {
        "before": {"val": scores["before"], "test": recovered.accuracy_after},
        "after": {"val": after, "test": test},
    }
    drop = None if recovered.validation_drop is None else recovered.validation_drop + scores["before"] - after
    return Encoded(final.network, compact, details, test, drop)


def _shared(
    network: Network,
    dataset: ImageDataset | None,
    options: EncodingOptions,
    limit: int | None,
    size: Size,
    judge: Judge,
    steps: Steps,
    tell: Callable[[str], None],
    seed: int,
    device: torch.device,
) -> tuple[Shared, float, dict[str, float]]:
    """The better of both roundings by the judge, within `limit` bytes if there is one; its score; and the scores: `before`,
    `shared` with every weight rounded by itself, and where there are images `compensated`."""
    saved = steps.finished("shared")
    if saved is not None:
        return unpacked(network, saved.values["shared"], saved.tensors), saved.values["score"], saved.values["scores"]
    groups = grouped(find_kernels(network, options.prune), unified=options.unified)
    compensate = compensation(network, dataset, seed, device)
    if limit is None:
        tell("Sharing values")
        choices = choices_at(groups, options)
        taken = rounded(network, choices, seed)
        better = compensate(choices) if compensate is not None else None
    else:
        tell("Allocating bits to layers")
        names = [kernel.name for group in groups for kernel in group.kernels]
        sensitivity = sensitivities(network, names, dataset, seed=seed, device=device)
        landing = Landing(network, groups, options, sensitivity, size, limit)
        taken = landing.rounded(seed)
        better = landing.compensated(seed, compensate) if compensate is not None else None
    tell("Measuring what sharing costs")
    scores = {"before": judge.score(network), "shared": judge.score(taken.network)}
    score = scores["shared"]
    if better is not None:
        scores["compensated"] = judge.score(better.network)
        if not judge.worse(scores["compensated"], score):
            taken, score = better, scores["compensated"]
    values, arrays = packed(network, taken)
    steps.finish("shared", {"shared": values, "score": score, "scores": scores}, arrays)
    return taken, score, scores


def compensation(network: Network, dataset: ImageDataset | None, seed: int, device: torch.device) -> Rounding | None:
    """Rounding by which layers make up for each other, on training images; None where there are too few."""
    if dataset is None:
        return None
    images = dataset.train.sample(refit_examples(network, network, device)).images
    if len(images) < MIN_REFIT_EXAMPLES:
        return None
    return lambda choices: compensated(network, dataset.prepare(images), choices, seed, device)
