"""What a delivered form does not hold of the upload, or does worse, said in words: nothing is left out in silence.

Only `model.onnx` (and the ONNX file that `model.pwt` turns back into) can hold everything that an uploaded graph has. A
notice names the form, what is missing there, and where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx

from core.deliver.latency import Latency
from core.errors import EngineError
from core.network import Network

Notice = dict[str, str]
# ONNX Runtime computes convolutions in blocks of so many channels, and others by a slower way.
_BLOCK = 8
# Slower by less may be chance, and what takes less is mostly the overhead of the operators.
_SLOWER, _LEAST_MS = 1.1, 0.1
# What each output is called where it is a form without ONNX's operators.
_PLAIN = {"pt2": "model.pt2", "safetensors": "model.py"}


def notices(network: Network, outputs: Sequence[str], *, graph_in_pwt: bool) -> list[Notice]:
    """`{"artifact", "message"}` of everything that a form lacks. graph_in_pwt: whether model.pwt has an ONNX graph."""
    found = [
        *_of_precision(network, outputs),
        *_of_sizes(network, outputs),
        *_of_tail(network, outputs, graph_in_pwt),
    ]
    if "pwt" in outputs and not graph_in_pwt:
        found.append(
            _notice("model.pwt", "It holds the tensors alone: the network has no ONNX form, so none can be made of it.")
        )
    return found


def of_speed(original: Latency | None, latency: Latency | None, widths: Mapping[str, tuple[int, int]]) -> list[Notice]:
    """Says so where fewer operations take longer, and how that may be mended. widths: before and after, of every layer."""
    if original is None or latency is None or original.p50 < _LEAST_MS or latency.p50 <= _SLOWER * original.p50:
        return []
    odd = sum(before % _BLOCK == 0 and after % _BLOCK != 0 for before, after in widths.values())
    if not odd:
        return []
    layers = "1 layer has a width that is" if odd == 1 else f"{odd} layers have widths that are"
    return [
        _notice(
            "model.onnx",
            f"It takes {latency.p50:.3g} ms in ONNX Runtime here, longer than the original's {original.p50:.3g} ms. {layers} no "
            f"longer a multiple of {_BLOCK}, which its fast kernels want. Ask for them with the method's option round_to: "
            f"--method magnitude:round_to={_BLOCK} (of an API job "
            f'"methods": [{{"type": "magnitude", "round_to": {_BLOCK}}}]).',
        )
    ]


def require_outputs(network: Network, outputs: Sequence[str]) -> None:
    """Raises EngineError("invalid_request") for a form that cannot be made of this upload, before anything is computed."""
    kept = tail_operators(network.interface.tail)
    if "onnx-int8" in outputs and kept:
        raise EngineError(
            "invalid_request",
            f"The end of the uploaded file ({kept}) is kept as it is, and what an int8 file costs cannot be measured "
            "behind it. Leave onnx-int8 out.",
            param="/outputs",
        )


def tail_operators(tail: bytes) -> str:
    """`NonMaxSuppression, Gather ×2`: what a tail computes; "" where it only gives values other names."""
    if not tail:
        return ""
    counts = Counter(node.op_type for node in onnx.ModelProto.FromString(tail).graph.node)
    del counts["Identity"]
    return ", ".join(name if count == 1 else f"{name} ×{count}" for name, count in counts.items())


def left_out(network: Network) -> str:
    """One sentence on what a form that ends where the network does leaves out of the uploaded file; "" for nothing."""
    tail = network.interface.tail
    if not tail:
        return ""
    own = [value.name for value in onnx.ModelProto.FromString(tail).graph.output]
    names = [spec.name for spec in network.outputs]
    what = tail_operators(tail)
    if what:
        return f"It returns {_listed(names)}. What the uploaded file computes from there ({what}) to give {_listed(own)} is not in it."
    return f"It returns {_listed(names)}. The uploaded file gives {_listed(own)}, where one value has several names."


def _of_tail(network: Network, outputs: Sequence[str], graph_in_pwt: bool) -> list[Notice]:
    missing = left_out(network)
    if not missing:
        return []
    where = [
        form
        for form, there in (("model.onnx", "onnx" in outputs), ("model.pwt", "pwt" in outputs and graph_in_pwt))
        if there
    ]
    holder = (
        f" {' and '.join(where)} hold{'s' * (len(where) == 1)} all of it."
        if where
        else " Ask for the output onnx to have all of it."
    )
    return [_notice(_PLAIN[output], missing + holder) for output in outputs if output in _PLAIN]


def _of_sizes(network: Network, outputs: Sequence[str]) -> list[Notice]:
    interface = network.interface
    found = []
    if interface.closed_axes:
        said = _axes(network, interface.closed_axes)
        found.append(
            _notice(
                "",
                f"The uploaded file leaves {said} open, and computes only at what it was read with: what is "
                "delivered takes that size alone.",
            )
        )
    if interface.open_axes and "pt2" in outputs:
        said = _axes(network, interface.open_axes)
        keeps = "; model.onnx keeps them open" if "onnx" in outputs else ""
        found.append(_notice("model.pt2", f"It takes the shape that the upload was read with: {said} fixed{keeps}."))
    return found


def _of_precision(network: Network, outputs: Sequence[str]) -> list[Notice]:
    own = network.interface.element_type
    if own == "float32":
        return []
    return [_notice("", f"The uploaded file computes in {own}; what is delivered computes in float32 throughout.")]


def _axes(network: Network, axes: Mapping[str, Mapping[int, str]]) -> str:
    shapes = {spec.name: spec.shape for spec in network.inputs}
    return "; ".join(
        f"{', '.join(f'{name or axis} ({shapes[one][axis - 1]})' for axis, name in free.items())} of input {one!r}"
        for one, free in axes.items()
    )


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name[:80]) for name in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _notice(artifact: str, message: str) -> Notice:
    """artifact: the file that it is about, "" for all of them."""
    return {"artifact": artifact, "message": message}
