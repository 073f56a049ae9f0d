"""One call per element-wise, view, pooling, normalisation and reduction operator, on a map x of shape [N, 16, 8, 8]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten
CHANNELS = 16
Call = Callable[[Tensor], Tensor]

_WITHOUT_ARGUMENTS = [
    "relu",
    "relu6",
    "silu",
    "gelu",
    "elu",
    "selu",
    "celu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "softplus",
    "log_sigmoid",
    "softshrink",
    "hardshrink",
    "logit",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "sqrt",
    "rsqrt",
    "square",
    "abs",
    "neg",
    "sign",
    "sgn",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "erf",
    "erfc",
    "floor",
    "ceil",
    "round",
    "trunc",
    "frac",
    "nan_to_num",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "clone",
    "contiguous",
    "detach",
    "alias",
    "zeros_like",
    "ones_like",
]
_TWO_OPERANDS = [
    "add",
    "sub",
    "mul",
    "div",
    "floor_divide",
    "remainder",
    "fmod",
    "pow",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "atan2",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_xor",
]
_WITH_A_NUMBER = [
    "add",
    "sub",
    "rsub",
    "mul",
    "div",
    "floor_divide",
    "remainder",
    "fmod",
    "pow",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "clamp_min",
    "clamp_max",
]


def _plain(name: str) -> Call:
    return lambda x: getattr(aten, name)(x)


def _same_twice(name: str) -> Call:
    return lambda x: getattr(aten, name)(x, x)


def _two_values(name: str) -> Call:
    return lambda x: getattr(aten, name)(x, torch.sigmoid(x))


def _with_number(name: str) -> Call:
    return lambda x: getattr(aten, name)(x, 2)


def _written_over(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 0] = 0
    return y


def _padded(x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 16, 10, 10)
    y[:, :, 1:9, 1:9].copy_(x)
    return y


def _pieces(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return F.relu(first) + torch.tanh(second)


def _uneven(x: Tensor) -> Tensor:
    first, second, third = x.split([3, 5, 8], 1)
    return torch.cat([F.relu(third), torch.sigmoid(first), second * 2], 1)


def _shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _channels_last_block(x: Tensor) -> Tensor:
    return F.gelu(F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,))).permute(0, 3, 1, 2)


def _bits(operator: Callable[..., Tensor]) -> Call:
    return lambda x: operator(x > 0, x < 1)


ELEMENTWISE_CALLS: dict[str, Call] = {
    **{name: _plain(name) for name in _WITHOUT_ARGUMENTS},
    **{f"{name} with itself": _same_twice(name) for name in _TWO_OPERANDS},
    **{f"{name} with another": _two_values(name) for name in _TWO_OPERANDS},
    **{f"{name} with a number": _with_number(name) for name in _WITH_A_NUMBER},
    "number - x": lambda x: 1 - x,
    "2 ** x": lambda x: 2**x,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "clamp": lambda x: x.clamp(-1, 1),
    "clip": lambda x: x.clip(-1, 1),
    "clamp by a tensor": lambda x: torch.clamp(x, min=torch.sigmoid(x)),
    "true_divide": lambda x: torch.true_divide(x, 3),
    "bitwise_not": lambda x: ~(x > 0),
    "bitwise_and": _bits(torch.bitwise_and),
    "bitwise_or": _bits(torch.bitwise_or),
    "bitwise_xor": _bits(torch.bitwise_xor),
    "addcmul": lambda x: torch.addcmul(x, x, x),
    "addcdiv": lambda x: torch.addcdiv(x, x, torch.sigmoid(x)),
    "lerp": lambda x: torch.lerp(x, torch.sigmoid(x), 0.3),
    "where": lambda x: torch.where(x > 0, x, torch.tanh(x)),
    "where with a number": lambda x: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "full_like": lambda x: torch.full_like(x, 3.0) + 1,
    "double and back": lambda x: x.double().float(),
    "half": lambda x: x.half().float(),
    "same type": lambda x: x.float().to(torch.float32),
    "copied by to": lambda x: x.to(torch.float32, copy=True),
    "type_as": lambda x: x.type_as(torch.sigmoid(x)),
    "_to_copy": lambda x: aten._to_copy(x, dtype=torch.float64),
    "copy": lambda x: aten.copy(x, torch.sigmoid(x)),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "feature_dropout": lambda x: F.dropout2d(x, 0.5, training=False),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=False),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, training=False),
    "rrelu": lambda x: F.rrelu(x, training=False),
    "glu": lambda x: F.glu(x, 1),
    "prelu": nn.PReLU(CHANNELS),
    "relu_": lambda x: F.relu(x, inplace=True),
    "relu_ of a value that is read later": lambda x: F.relu(y := x * 2, inplace=True) + y,
    "add_": lambda x: x.add_(torch.sigmoid(x)),
    "mul_": lambda x: x.mul_(2),
    "relu of a value that is read later": lambda x: F.relu(x) + x,
    "dropout of a value that is read later": lambda x: F.dropout(x, 0.5, training=False) + x,
}
VIEW_CALLS: dict[str, Call] = {
    "view": lambda x: F.relu(x.view(-1, 16 * 64)),
    "reshape": lambda x: F.relu(x.reshape(-1, 16, 64)),
    "flatten": lambda x: F.relu(x.flatten(2)),
    "unflatten": lambda x: F.relu(x.unflatten(1, (4, 4))).flatten(1, 2),
    "unsqueeze and squeeze": lambda x: F.relu(x.unsqueeze(1)).squeeze(1),
    "squeeze everything": lambda x: F.relu(F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)),
    "permute": lambda x: F.relu(x.permute(0, 2, 3, 1)),
    "permute and contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "permute and flatten": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "permute and clone": lambda x: x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format),
    "permute of a pooled map": lambda x: F.relu(F.adaptive_avg_pool2d(x, 1).permute(0, 2, 3, 1).flatten(1)),
    "permute, block, permute": _channels_last_block,
    "relu of a permuted map, flattened": lambda x: F.relu(x.permute(0, 2, 3, 1)).flatten(1),
    "gelu of a copied permuted map": lambda x: (F.gelu(y := x.permute(0, 2, 3, 1)) + y).flatten(1),
    "transpose": lambda x: F.relu(x.flatten(2).transpose(1, 2)),
    "transpose and split an axis": lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 64, 4, 4),
    "t": lambda x: torch.relu(x.flatten(1).t()).t(),
    "movedim": lambda x: F.relu(x.movedim(1, 3)).movedim(3, 1),
    "swapaxes": lambda x: F.relu(x.swapaxes(2, 3)),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "contiguous channels last": lambda x: F.relu(x.contiguous(memory_format=torch.channels_last)).flatten(1),
    "expand": lambda x: F.adaptive_avg_pool2d(x, 1).expand(-1, 16, 8, 8) * 2,
    "expand_as": lambda x: F.relu(F.adaptive_avg_pool2d(x, 1).expand_as(x)),
    "expand, flattened": lambda x: F.adaptive_avg_pool2d(x, 1).expand(-1, 16, 8, 8).flatten(1),
    "slice of channels": lambda x: F.relu(x[:, :8]),
    "slice of channels, flattened": lambda x: x[:, 4:].flatten(1),
    "slice with a step": lambda x: F.relu(x[:, :, ::2, ::2]),
    "slice with a step, flattened": lambda x: x[:, :, ::2, ::2].flatten(1),
    "slice of everything": lambda x: F.relu(x[:, 0:16]),
    "select": lambda x: F.relu(x[:, :, 0]),
    "unbind": lambda x: F.relu(x.unbind(2)[1]) * 2,
    "narrow": lambda x: F.relu(x.narrow(1, 2, 8)),
    "chunk": _pieces,
    "tensor_split": lambda x: F.relu(x.tensor_split(2, 1)[0]),
    "unsafe_chunk": lambda x: torch.relu(x.unsafe_chunk(2, 1)[1]),
    "uneven split": _uneven,
    "channel shuffle": _shuffled,
    "view of a gain": lambda x: x * torch.relu(torch.ones(16).view(16, 1, 1)),
    "write to a slice": _written_over,
    "write into padding": _padded,
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll(1, 3),
    "cat": lambda x: torch.cat([x, F.relu(x)], 1),
    "stack": lambda x: torch.stack([x, F.relu(x)], 1).flatten(1, 2),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)),
    "reflection pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replication pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
}
POOL_AND_NORM_CALLS: dict[str, Call] = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "max_pool2d that keeps the size": lambda x: F.max_pool2d(x, 3, 1, 1),
    "max_pool2d_with_indices": lambda x: aten.max_pool2d_with_indices(x, [2, 2])[0],
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "lp_pool2d": lambda x: F.lp_pool2d(x, 2, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive_avg_pool2d that keeps the size": lambda x: F.adaptive_avg_pool2d(x, 8),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 2),
    "upsample nearest": lambda x: F.interpolate(x, scale_factor=2),
    "upsample nearest exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "upsample bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "upsample bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "upsample linear": lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "batch_norm": nn.BatchNorm2d(CHANNELS).eval(),
    "batch_norm of a value that is read later": lambda x: F.batch_norm(x, torch.zeros(16), torch.ones(16)) + x,
    "instance_norm": lambda x: F.instance_norm(x),
    "group_norm": nn.GroupNorm(4, CHANNELS),
    "layer_norm": lambda x: F.layer_norm(x, (8, 8)),
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "softmax": lambda x: x.softmax(3),
    "log_softmax": lambda x: x.log_softmax(3),
    "cumsum": lambda x: x.cumsum(2),
    "mean": lambda x: x.mean((2, 3), keepdim=True) * x,
    "amax": lambda x: x.amax((2, 3)),
    "max with indices": lambda x: x.max(3)[0],
    "larger of two": lambda x: torch.max(x, torch.tanh(x)),
    "var_mean": lambda x: torch.var_mean(x, (2, 3))[0],
    "std": lambda x: x.std((2, 3)),
    "norm": lambda x: x.norm(dim=(2, 3)),
    "logsumexp": lambda x: x.logsumexp((2, 3)),
    "argmax": lambda x: x.argmax(3),
    "any": lambda x: (x > 0).any(3),
}
CALLS = {**ELEMENTWISE_CALLS, **VIEW_CALLS, **POOL_AND_NORM_CALLS}


class AroundOneOperator(nn.Module):
    """conv → the operator → conv, where it returns a float map, else the sum of what it returns."""

    def __init__(self, call: Call, *, last: str = "conv") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.call = call
        with torch.no_grad():
            example = call(self.stem(torch.rand(2, 3, 8, 8)))
        is_map = example.ndim == 4 and example.dtype == torch.float32 and example.shape[0] == 2
        self.head = nn.Conv2d(example.shape[1], 8, 1) if is_map and last == "conv" else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.stem(x))
        return y.sum(tuple(range(1, y.ndim))) if self.head is None else self.head(y)
