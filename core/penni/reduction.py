"""Reduction: from a network to one of shared kernels within the caps, in closed forms only.

    decompose ── fit all columns ── [prune towards the caps ── fit the columns that are left] × 3 ── on the caps

Each fit goes through the layers in the order of execution, with inputs from the prefix that is compressed already and
targets from the original (`core.recovery.refit`, `core.penni.fitting`). Pruning goes in steps, because what a fit finds
after a small step ranks the columns of the next one better than the first ranking does. Without images there is nothing
to fit to: the singular vectors of the weights stand as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.network import Network
from core.penni.program import Program, Train, Watch
from core.penni.pruning import Pruning
from core.penni.reduced import Reduced
from core.penni.search import Selection
from core.progress import Progress, silent
from core.recovery.steps import Steps

STEP = "fit"


def reduce_columns(
    network: Network,
    pruning: Pruning,
    images: Tensor | None,
    *,
    train: Train | None = None,
    nearest: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    steps: Steps | None = None,
    watch: Watch | None = None,
) -> Reduced:
    """`network` pruned until it meets the caps and aims of `pruning`. images: prepared inputs [n, …], or None.

    train: takes the place of the closed-form fits, from the trainable form to the trained one. steps: where the fit is
    kept once it is done, and found by a run that goes on after it. watch: told of every phase, with the network as it
    stands and what it costs. Raises EngineError("target_infeasible"), before any image is looked at, where the least
    that may be left exceeds a cap; with `nearest` that is taken instead.
    """
    program = Program(network, pruning, torch.device(device), progress, watch)
    selection = program.landed()
    if selection is None and not nearest:
        raise program.refusal()
    selection = selection or program.search.smallest
    if train is not None:
        selection = _fitted(lambda: program.trained(train), program, steps)
    elif images is not None:
        selection = _fitted(lambda: program.fitted(selection, images), program, steps)
    return program.reduced(selection, len(images) if images is not None else 0)


def _fitted(fit: Callable[[], Selection], program: Program, steps: Steps | None) -> Selection:
    """The fit that an interrupted run had finished, or a new one."""
    kept = steps.finished(STEP) if steps is not None else None
    if kept is not None:
        return program.restored(kept)
    selection = fit()
    if steps is not None:
        steps.finish(STEP, *program.state(selection))
    return selection
