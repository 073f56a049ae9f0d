"""The original as a teacher: what it says of every training batch, as cheaply as that can be had.

Its batch-norms are folded into the convolutions in front of them, unless what those convolutions say is asked for. Where
only outputs are, the same images come back every epoch and the outputs of all of them are small, one pass of the original
is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.analysis.schema import operator_name
from core.module_form import to_module
from core.network import Network
from core.recovery.augmentation import Augmentation
from core.recovery.dataset import ImageDataset
from core.recovery.features import Features
from core.recovery.images import Split
from core.recovery.outputs import as_outputs, every_output
from core.recovery.schedule import Schedule

_KNOWN_BYTES = 2**29
# A view cannot merge axes whose elements are not adjacent; channels last would make it fail.
_STRIDED_OPERATORS = frozenset({"view", "view_as", "_unsafe_view", "as_strided"})
_FUSIBLE = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


@dataclass(frozen=True)
class Said:
    """outputs: the original's for a batch. layers: what its compared layers gave, by path."""

    outputs: tuple[Tensor, ...]
    layers: Mapping[str, Tensor] = field(default_factory=dict)


Teacher = Callable[[Tensor, Tensor], Said]


def teacher_for(
    original: Network,
    train: Split,
    dataset: ImageDataset,
    schedule: Schedule,
    augmentation: Augmentation,
    features: Features,
    device: torch.device,
) -> Teacher | None:
    """What the original says of a batch (rows of the train split, prepared inputs); None without distillation."""
    if not schedule.distill:
        return None
    inputs_return = not (augmentation.active or schedule.cutout or schedule.mixup)
    bytes_in_all = 4 * len(train) * sum(torch.Size(spec.shape).numel() for spec in original.outputs)
    if (
        inputs_return
        and not features.rows
        and schedule.steps > schedule.steps_per_epoch
        and bytes_in_all <= _KNOWN_BYTES
    ):
        known = [
            torch.cat(pieces) for pieces in zip(*every_output(original, train.images, dataset, device), strict=True)
        ]
        return lambda rows, inputs: Said(tuple(output[rows] for output in known))
    module = folded(to_module(original), features.rows)
    module = module.to(device=device, memory_format=memory_format(original)).requires_grad_(False)

    def say(rows: Tensor, inputs: Tensor) -> Said:
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16),
            features.watch(module) as layers,
        ):
            return Said(as_outputs(module(inputs)), layers)

    return say


def folded(module: GraphModule, left_alone: Collection[str] = ()) -> GraphModule:
    """`module` in evaluation mode, without the batch-norms that directly follow a convolution of their own.

    left_alone: paths of convolutions whose outputs must stay as they are.
    """
    calls: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    for node in list(module.graph.nodes):
        if node.op != "call_module" or node.args[0].op != "call_module":
            continue
        source = node.args[0]
        norm, convolution = (module.get_submodule(one.target) for one in (node, source))
        if (
            type(norm) is _FUSIBLE.get(type(convolution))
            and source.target not in left_alone
            and norm.track_running_stats
            and norm.affine
            and len(source.users) == 1
            and calls[source.target] == calls[node.target] == 1
        ):
            owner, _, name = source.target.rpartition(".")
            setattr(module.get_submodule(owner), name, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.recompile()
    return module.eval()


def memory_format(*networks: Network) -> torch.memory_format:
    """Channels last, the layout that convolutions compute in, unless an operator insists on strides."""
    operators = {
        operator_name(node.target) for net in networks for node in net.graph.nodes if node.op == "call_function"
    }
    return torch.contiguous_format if operators & _STRIDED_OPERATORS else torch.channels_last
