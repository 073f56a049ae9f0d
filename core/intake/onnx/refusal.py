"""What a graph holds that is not read, listed in full before anything is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx

from core.errors import EngineError, first_line
from core.intake.onnx.handlers import HANDLERS
from core.intake.onnx.proto import subgraphs
from core.intake.onnx.tail import TAIL_OPERATORS
from core.intake.refusals import invalid

FIRST_OPSET, LAST_OPSET = 7, 26
_OWN_DOMAINS = ("", "ai.onnx")
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_QUANTISED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
_KINDS = onnx.AttributeProto
_ODD = frozenset({_KINDS.SPARSE_TENSOR, _KINDS.SPARSE_TENSORS, _KINDS.TENSORS, _KINDS.TYPE_PROTO, _KINDS.TYPE_PROTOS})
_SHOWN = 12


def require_readable(model: onnx.ModelProto) -> int:
    """The opset of the graph. Raises EngineError("unsupported_format") listing everything that is in the way."""
    problems: dict[str, list[str]] = {}
    opset = _opset(model, problems)
    own = [node for node in model.graph.node if node.domain in _OWN_DOMAINS]
    _add(
        problems,
        "quantised operators (upload the float model)",
        _counted(n.op_type for n in own if n.op_type in _QUANTISED),
    )
    foreign = _counted(f"{node.domain}:{node.op_type}" for node in model.graph.node if node.domain not in _OWN_DOMAINS)
    _add(problems, "operators of custom domains", foreign)
    flow = [node for node in own if node.op_type in _CONTROL_FLOW or any(True for _ in subgraphs(node))]
    _add(problems, "control flow (export a graph without branches and loops)", _counted(node.op_type for node in flow))
    known = _QUANTISED | _CONTROL_FLOW | HANDLERS.keys() | TAIL_OPERATORS
    missing = _counted(node.op_type for node in own if node.op_type not in known)
    _add(problems, "operators that are not read", missing)
    _add(problems, "external data (save everything in one file)", _external(model))
    _add(problems, "sparse initializers", [one.values.name for one in model.graph.sparse_initializer])
    _add(problems, "attributes that are sparse tensors, lists of tensors or types", _odd_attributes(model))
    _add(problems, "functions of its own (inline them)", [function.name for function in model.functions])
    if problems:
        listing = "; ".join(f"{kind}: {', '.join(_shown(names))}" for kind, names in problems.items())
        raise EngineError(
            "unsupported_format",
            f"The ONNX graph cannot be read. It has {listing}.",
            details={"unsupported": {kind: names[:1000] for kind, names in problems.items()}},
        )
    return opset


def require_valid(model: onnx.ModelProto) -> None:
    """The library's own check. Raises EngineError("invalid_model")."""
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise invalid(
            f"The ONNX graph breaks the format's rules: {first_line(error, 300)} Export the network again."
        ) from error
    names = Counter(one.name for one in model.graph.initializer)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise invalid(f"The ONNX graph has two initializers named {twice[0][:80]!r}.")
    outputs = Counter(one.name for one in model.graph.output)
    twice = [name for name, count in outputs.items() if count > 1]
    if twice:
        raise invalid(f"The ONNX graph has two outputs named {twice[0][:80]!r}; name each of them once.")


def _opset(model: onnx.ModelProto, problems: dict[str, list[str]]) -> int:
    versions = {one.version for one in model.opset_import if one.domain in _OWN_DOMAINS}
    if not versions:
        _add(problems, "no opset_import for the standard operators, so that their meaning is unknown", ["ai.onnx"])
        return LAST_OPSET
    wrong = [str(version) for version in sorted(versions) if not FIRST_OPSET <= version <= LAST_OPSET]
    _add(problems, f"an opset outside of {FIRST_OPSET} to {LAST_OPSET}", wrong)
    if len(versions) > 1:
        _add(problems, "several opsets at once", [str(version) for version in sorted(versions)])
    return max(versions)


def _external(model: onnx.ModelProto) -> list[str]:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    inside = [one for attribute in attributes for one in (attribute.t, *attribute.tensors)]
    tensors = [*model.graph.initializer, *inside]
    return [one.name for one in tensors if one.external_data or one.data_location == onnx.TensorProto.EXTERNAL]


def _odd_attributes(model: onnx.ModelProto) -> list[str]:
    return _counted(
        f"{node.op_type}.{one.name}"
        for node in model.graph.node
        if node.domain in _OWN_DOMAINS
        for one in node.attribute
        if one.type in _ODD or one.HasField("sparse_tensor") or one.tensors
    )


def _counted(names: Iterable[str]) -> list[str]:
    counts = Counter(names)
    return [name if count == 1 else f"{name} ×{count}" for name, count in counts.items()]


def _add(problems: dict[str, list[str]], kind: str, names: list[str]) -> None:
    if names:
        problems[kind] = names


def _shown(names: list[str]) -> list[str]:
    rest = len(names) - _SHOWN
    return [name[:80] for name in names[:_SHOWN]] + ([f"and {rest} more"] if rest > 0 else [])
