"""The encode stage: a network's kernels onto few shared values, onto a cap on the file where there is one.

    kernels ── prune ── groups ─┬─ so many levels ───────────────────────────┬─ fine-tune ── guard ── measure
                                └─ curves ── allocate ── write ── adjust ────┘

What comes back is the network with exactly the values that every delivered file holds, so that what is measured is what is
delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.deliver.pwt_file import Compact, measured_pwt, skeleton_of
from core.encoding.allocation import allocate, curve
from core.encoding.container import PwtSummary
from core.encoding.description import describe_encoding
from core.encoding.fine_tuning import fine_tune_shared, plan_run
from core.encoding.judge import Judge
from core.encoding.kernels import Group, find_kernels, grouped, with_values
from core.encoding.options import DEFAULT_LEVELS, EncodingOptions
from core.encoding.quantized import QuantizedTensor
from core.encoding.quantizers import MOST_LEVELS, quantizer
from core.encoding.sensitivity import sensitivities
from core.network import Network
from core.progress import Progress, ProgressEvent
from core.recovery import ImageDataset, Recovered

# A file between these shares of its cap has landed.
_LANDED = 0.985
_ATTEMPTS = 10
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
) -> Encoded:
    """Encode what recovery left; there is something to do (`Steering.encodes`). stored: whether `model.pwt` is asked for. size_limit: bytes that it may take. opset: of the ONNX file that it turns back into.

    A limit that cannot be reached gives the smallest file there is; whoever asked has to look.
    """
    network = recovered.network
    skeleton = skeleton_of(network, opset) if stored else None
    if not options.lossy:
        compact = Compact({}, skeleton, options.format)
        details = describe_encoding(options, compact, measured_pwt(network, compact))
        return Encoded.unchanged(recovered, compact, details)

    def tell(message: str, step: int | None = None, steps: int | None = None) -> None:
        progress(ProgressEvent("encode", message=message, step=step, steps=steps))

    def stored_as(found: Network, shared_tensors: Mapping[str, QuantizedTensor]) -> tuple[Compact, PwtSummary]:
        """How the finished network is stored, with the skeleton of its own values."""
        compact = Compact(shared_tensors, skeleton_of(found, opset) if stored else None, options.format)
        return compact, measured_pwt(found, compact)

    groups = grouped(find_kernels(network, options.prune), unified=options.unified)
    if size_limit is None or not stored:
        tell("Sharing values")
        tensors = quantized_at(groups, options, seed)
    else:
        tell("Allocating bits to layers")
        names = [kernel.name for group in groups for kernel in group.kernels]
        sensitivity = sensitivities(network, names, dataset, seed=seed, device=device)

        def size(found: Mapping[str, QuantizedTensor]) -> int:
            return measured_pwt(network, Compact(found, skeleton, options.format)).file_bytes

        room = _SPARE_BYTES * len(network.tensors) if dataset is not None and options.epochs != 0 else 0
        tensors = quantized_within(groups, options, sensitivity, size, size_limit - room, seed)
    judge = Judge(original, network, dataset, device)
    tell("Measuring what sharing costs")
    shared = with_values(network, tensors)
    before, after = judge.score(network), judge.score(shared)
    scores = {"before": before, "shared": after}
    final, tuning = shared, {"epochs": 0}
    compact, summary = stored_as(shared, tensors)
    if dataset is not None and options.epochs != 0 and tensors:
        run = plan_run(network, len(dataset.train), options.epochs, device)
        learnt = fine_tune_shared(
            shared,
            tensors,
            original,
            dataset,
            run,
            seed=seed,
            device=device,
            tell=lambda step, message: tell(message, step, run.steps),
        )
        tuning = {"epochs": round(run.epochs, 3), "steps": run.steps, "batch_size": run.batch}
        tuning["kept"] = False
        if learnt is not None:
            scores["fine_tuned"] = judge.score(learnt[0])
            tuned = stored_as(*learnt)
            fits = size_limit is None or tuned[1].file_bytes <= max(size_limit, summary.file_bytes)
            if fits and not judge.worse(scores["fine_tuned"], after):
                final, after, tuning["kept"] = learnt[0], scores["fine_tuned"], True
                compact, summary = tuned
    tell("Measuring the result")
    details = describe_encoding(options, compact, summary)
    details |= {"fine_tuning": tuning, judge.measure: scores}
    if not judge.labelled:
        return Encoded(final, compact, details)
    test = judge.test_accuracy(final)
    details["accuracy"] = {
        "before": {"val": before, "test": recovered.accuracy_after},
        "after": {"val": after, "test": test},
    }
    drop = None if recovered.validation_drop is None else recovered.validation_drop + before - after
    return Encoded(final, compact, details, test, drop)


def quantized_at(groups: list[Group], options: EncodingOptions, seed: int) -> dict[str, QuantizedTensor]:
    """Every group with at most the asked-for number of shared values."""
    levels = options.levels or DEFAULT_LEVELS
    found: dict[str, QuantizedTensor] = {}
    for index, group in enumerate(groups):
        chosen = None
        if group.values is not None:
            chosen = quantizer(options.quantizer, group.values, levels).at_levels(levels)
        found.update(group.quantized(chosen, seed + index))
    return found


def quantized_within(
    groups: list[Group],
    options: EncodingOptions,
    sensitivity: Mapping[str, float],
    size: Callable[[Mapping[str, QuantizedTensor]], int],
    limit: int,
    seed: int,
) -> dict[str, QuantizedTensor]:
    """The best allocation found whose file, as `size` measures it, takes at most `limit` bytes; else the smallest file."""
    most = options.levels or MOST_LEVELS
    curves = [curve(group, options.quantizer, most, sensitivity) for group in groups]

    def at(bits: float) -> tuple[dict[str, QuantizedTensor], int]:
        found: dict[str, QuantizedTensor] = {}
        for index, (group, chosen) in enumerate(zip(groups, allocate(curves, bits), strict=True)):
            found.update(group.quantized(chosen.levels, seed + index))
        return found, size(found)

    cheapest, dearest = (sum(pick(one.bits for one in points) for points in curves) for pick in (min, max))
    best, taken = at(cheapest)
    if taken > limit:
        return best
    # What else is in the file hardly changes, so a byte more for indices is a byte more of file.
    low, high = cheapest, dearest
    bits = min(high, low + 8 * (limit - taken))
    for _ in range(_ATTEMPTS):
        found, reached = at(bits)
        if reached <= limit:
            low = bits
            if reached > taken:
                best, taken = found, reached
            if taken >= _LANDED * limit or bits >= dearest:
                break
        else:
            high = bits
        step = bits + 8 * (0.997 * limit - reached)
        bits = step if low < step < high else (low + high) / 2
    return best
