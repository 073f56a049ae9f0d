"""The imported network against ONNX Runtime on the file itself: the condition for everything that follows.

Both run on the same noise, at batch 1 and at batch `MANY` (where the file has one image written into it, image by image).
Where they differ, every value of the graph is compared, and the error names the first node that does. A deep network may
amplify float32's own rounding beyond the tolerance; then the file's outputs are held against the network in float64, and
may be as far from it as twice what rounding does to the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from core.errors import EngineError, first_line
from core.intake.onnx.values import MANY
from core.intake.refusals import invalid
from core.network import Network
from core.surgery.masked_run import Run

TOLERANCE = 1e-4
# Of whole numbers and truth values, which rounding may turn over.
_DIFFERENT_SHARE = 0.01
_FLOOR = 1e-3
_ROUNDING_FACTOR = 2.0
# However much a network amplifies rounding, what differs by more has no digit left to compare.
_ROUNDING_LIMIT = 1e-2


def require_agreement(
    model: onnx.ModelProto, network: Network, nodes: Mapping[str, Node], operators: Mapping[str, str], *, dynamic: bool
) -> float:
    """The largest relative error of an output.

    nodes: the network's node of each value of the graph, in order. operators: what made each value, for people.
    Raises EngineError("invalid_model") beyond 1e-4, where ONNX Runtime refuses the file, and for infinite outputs.
    """
    names = [spec.name for spec in network.outputs]
    session = _session(model, names, optimised=True)
    worst = 0.0
    for batch in (1, MANY):
        inputs = network.random_inputs(batch=batch, seed=batch)
        expected = _expected(session, network, inputs, names, whole=dynamic)
        results = [result.numpy() for result in network.run(*inputs)]
        batch_worst = 0.0
        for name, got, want in zip(names, results, expected, strict=True):
            if not np.isfinite(want).all():
                raise invalid(
                    f"Output {name!r} of the ONNX file is not finite for standard-normal inputs: its weights overflow "
                    "float32, or it takes a root or logarithm of a negative number. Check that the file is the trained network."
                )
            batch_worst = float(np.maximum(batch_worst, difference(got, want)))  # NaN stays
        worst = max(worst, batch_worst)
        if not batch_worst <= TOLERANCE and not _only_rounding(network, inputs, results, expected):
            raise _first_difference(model, network, nodes, operators, inputs, dynamic, batch_worst, batch)
    return worst


def _only_rounding(
    network: Network, inputs: Sequence[Tensor], results: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> bool:
    """Whether the file's outputs are as near to the network in float64 as float32 lets the network itself be."""
    run, exact = Run(network.graph, network.tensors, tuple(inputs)), []
    for node in network.graph.nodes:
        if node.op == "output":
            exact = [run.value(one).numpy() for one in node.args[0]]
        run.step(node)
        run.release(node)
    for truth, got, want in zip(exact, results, expected, strict=True):
        if not np.issubdtype(want.dtype, np.floating):
            continue
        allowed = max(TOLERANCE, min(_ROUNDING_LIMIT, _ROUNDING_FACTOR * difference(got, truth)))
        if not difference(want, truth) <= allowed:
            return False
    return all(difference(got, want) <= _ROUNDING_LIMIT for got, want in zip(results, expected, strict=True))


def agrees_at(model: onnx.ModelProto, network: Network, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether file and network also agree for inputs of other shapes (without the batch)."""
    names = [spec.name for spec in network.outputs]
    inputs = network.random_inputs(batch=1, seed=1, shapes=shapes)
    try:
        expected = _expected(_session(model, names, optimised=True), network, inputs, names, whole=True)
        results = network.run(*inputs)
    except (EngineError, RuntimeError):
        # A literal size in the one or the other: it belongs to the shapes that the network was imported for.
        return False
    return all(difference(got.numpy(), want) <= TOLERANCE for got, want in zip(results, expected, strict=True))


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """‖got − want‖ / ‖want‖; for whole numbers 0 where at least 99 % are equal; infinite where the shapes differ.

    ‖want‖ counts as at least `_FLOOR` per element: ONNX Runtime's sigmoid is exact to float32's resolution at 1 only.
    """
    if got.shape != want.shape:
        return float("inf")
    if not np.issubdtype(want.dtype, np.floating):
        return 0.0 if np.mean(got != want) <= _DIFFERENT_SHARE else float("inf")
    size = float(np.linalg.norm(want.astype(np.float64)))
    distance = float(np.linalg.norm(got.astype(np.float64) - want.astype(np.float64)))
    return distance / max(size, _FLOOR * math.sqrt(want.size)) if want.size else 0.0


def _session(model: onnx.ModelProto, outputs: Sequence[str], *, optimised: bool) -> onnxruntime.InferenceSession:
    """A session over the file with other outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    declared = {one.name: one for one in (*model.graph.output, *model.graph.value_info)}
    copy.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = max(1, torch.get_num_threads())
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimised else levels.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # The library's errors have no common type, here and below.
    except Exception as error:
        raise _refused(error) from error


def _expected(
    session: onnxruntime.InferenceSession,
    network: Network,
    inputs: Sequence[Tensor],
    names: Sequence[str],
    *,
    whole: bool,
) -> list[np.ndarray]:
    """What the file computes; image by image where it takes one at a time."""
    slices = [inputs] if whole else [tuple(one[i : i + 1] for one in inputs) for i in range(len(inputs[0]))]
    runs = []
    for images in slices:
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, images, strict=True)}
        try:
            runs.append(session.run(list(names), feeds))
        except Exception as error:
            raise _refused(error) from error
    return [np.concatenate(results) if len(results) > 1 else results[0] for results in zip(*runs, strict=True)]


def _refused(error: Exception) -> EngineError:
    return invalid(
        f"ONNX Runtime does not run the file: {first_line(error, 300)}. Check it with onnxruntime and export it again."
    )


def _first_difference(
    model: onnx.ModelProto,
    network: Network,
    nodes: Mapping[str, Node],
    operators: Mapping[str, str],
    inputs: Sequence[Tensor],
    dynamic: bool,
    error: float,
    batch: int,
) -> EngineError:
    values: dict[Node, Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, node: Node) -> object:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                values[node] = result.detach().clone()
            return result

    with torch.no_grad():
        Recorder(network.module()).run(*inputs)
    own = {node.name: node for node in values}
    compared = {name: own[node.name] for name, node in nodes.items() if node.name in own and node.op == "call_function"}
    expected = _expected(
        _session(model, list(compared), optimised=False), network, inputs, list(compared), whole=dynamic
    )
    where = "its outputs"
    for (name, node), want in zip(compared.items(), expected, strict=True):
        found = difference(values[node].numpy(), want)
        if not found <= TOLERANCE:
            where, error = operators.get(name, name), found
            break
    images = "" if batch == 1 else f" with {batch} images at once"
    return invalid(
        f"The imported network differs from ONNX Runtime{images}: the first difference is at {where}, {error:.1e} "
        "(relative). Either the graph mixes the images of a batch, or this is a fault of the importer; please report it.",
        {"first_difference": where, "relative_error": error if np.isfinite(error) else None, "batch": batch},
    )
