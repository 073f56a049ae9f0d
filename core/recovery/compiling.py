"""torch.compile for a training step, where this machine can do it.

It writes C++ or GPU code and needs a compiler for it; the first step is what shows whether there is one. It rounds otherwise
than the plain module, so it is asked for and never chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.errors import first_line
from core.recovery.outputs import as_outputs

logger = logging.getLogger(__name__)


def compiled(
    module: nn.Module, inputs: Tensor, autocast: torch.autocast
) -> tuple[Callable[[Tensor], object], str | None]:
    """What to call in place of `module`, and why it is the module itself, if it is.

    One step forward and back is tried on `inputs`; weights, statistics and random state are left as they were.
    """
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            fast = torch.compile(module, dynamic=False)
            with autocast:
                outputs = as_outputs(fast(inputs))
            sum(output.sum() for output in outputs if output.requires_grad).backward()
    # What a compiler, its headers or the operating system may find wrong has no common type.
    except Exception as error:
        logger.warning("torch.compile does not work here.", exc_info=True)
        return module, f"Trained without torch.compile, which does not work here: {first_line(error)}"
    finally:
        module.load_state_dict(state)
        module.zero_grad(set_to_none=True)
    return fast, None
