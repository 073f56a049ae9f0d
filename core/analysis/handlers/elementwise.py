"""Element-wise operators: per axis, the labels of all operands are equal.

With a single tensor operand they may run in place: the memory model lets them reuse their input's buffer.
"""

from __future__ import annotations

from core.analysis.context import Call, Recorder
from core.analysis.values import Value

_UNARY = """
relu relu6 silu gelu elu selu celu mish hardswish hardsigmoid hardtanh leaky_relu sigmoid tanh softplus softsign
log_sigmoid tanhshrink softshrink hardshrink threshold logit
exp expm1 log log1p log2 log10 sqrt rsqrt square abs neg sign sgn reciprocal sin cos tan asin acos atan sinh cosh
erf erfc floor ceil round trunc frac clamp clamp_min clamp_max clip nan_to_num
isnan isinf isfinite logical_not bitwise_not
to _to_copy type_as float double half clone contiguous detach alias lift_fresh_copy
dropout feature_dropout alpha_dropout feature_alpha_dropout
"""
_N_ARY = """
add sub rsub mul div true_divide floor_divide remainder fmod pow maximum minimum fmax fmin atan2
addcmul addcdiv lerp where masked_fill copy
eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor
zeros_like ones_like full_like zero fill
"""
ELEMENTWISE = frozenset((_UNARY + _N_ARY).split())


def broadcast(recorder: Recorder, call: Call, operands: list[Value], shape: tuple[int, ...]) -> Value:
    """Tie the labels of all operands along every axis of their broadcast `shape`; size 1 broadcasts and is skipped."""
    labels = {}
    for axis, size in enumerate(shape):
        vectors = []
        for operand in operands:
            own = axis - len(shape) + operand.rank
            if size > 1 and own >= 0 and operand.shape[own] == size:
                vectors.append(operand.vector(own))
        labels[axis] = recorder.join(vectors, f"{call.operator} with a tensor that cannot be sliced")
    return Value(shape, labels)


def elementwise(recorder: Recorder, call: Call) -> Value:
    return broadcast(recorder, call, call.tensors, call.shape)


def prelu(recorder: Recorder, call: Call) -> Value:
    """One slope per channel (axis 1), or one for all."""
    x, weight = call["self"], call["weight"]
    if x.rank > 1 and weight.shape[0] > 1:
        recorder.tie(x.vector(1), weight.vector(0), "prelu with slopes that cannot be sliced")
    return Value(x.shape, x.labels)


def glu(recorder: Recorder, call: Call) -> Value:
    """a · σ(b) with (a, b) the halves along `dim`: both halves of a channel live or die together."""
    x = call["self"]
    dim = x.axis(call["dim"])
    labels = dict(x.labels)
    if dim in labels:
        labels[dim] = recorder.tie_rows(labels[dim].reshape(2, -1))
        recorder.piece(labels[dim], "[gate]")
    return Value(call.shape, labels)


HANDLERS = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "prelu": prelu,
    "glu": glu,
}
