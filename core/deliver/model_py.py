"""`model.py`: the network as plain PyTorch that needs nothing but torch, written to be read and trained further."""

from __future__ import annotations

import inspect
import re
import runpy
import tempfile
import textwrap
from pathlib import Path

import torch

from core.analysis import profile
from core.deliver.artifacts import write_safetensors
from core.deliver.difference import relative_error
from core.deliver.notices import left_out
from core.deliver.source import reader
from core.deliver.source.forward import Forward, write_forward
from core.deliver.source.layout import INDENT, Group, render
from core.deliver.source.modules import NAMESPACE, ModuleTree
from core.errors import EngineError
from core.network import Network, TensorSpec

_TOLERANCE = 1e-5
_CHECKED_BATCHES = (1, 3)

_LOAD = '''def load(path: str | Path = "model.safetensors") -> Model:
    """The network with its trained weights, in eval mode."""
    model = Model()
    model.load_state_dict(read_safetensors(path))
    return model.eval()
'''


def write_model_py(network: Network, path: Path) -> None:
    """Write the class and its loader, then load and run them.

    Raises EngineError("internal") where they do not compute what the network computes.
    """
    path.write_text(model_source(network), encoding="utf-8")
    _compare(network, path)


def model_source(network: Network) -> str:
    """The text of `model.py`; a name that comes from the checkpoint is a plain identifier in it or a string literal."""
    tree = ModuleTree.of(network)
    forward = write_forward(tree)
    model = _class(tree, forward)
    functional = "import torch.nn.functional as F\n" if re.search(r"(?<![\w.])F\.", model) else ""
    definitions = [
        *([NAMESPACE] if tree.needs_namespace else []),
        model,
        inspect.getsource(reader).partition("import torch\n\n")[2],
        _LOAD,
    ]
    imports = f"import json\nimport math\nfrom pathlib import Path\n\nimport torch\n{functional}from torch import nn\n"
    return "\n\n".join([f"{_docstring(network, forward)}\n\n{imports}", *definitions])


def _docstring(network: Network, forward: Forward) -> str:
    costs = profile(network).costs
    specs = [("input", spec) for spec in network.inputs] + [("output", spec) for spec in network.outputs]
    lines = [
        "A compressed network as plain PyTorch; it needs torch and nothing else.",
        "",
        "What it takes, gives and costs:",
        *(f"    {kind:<8}{_plain_text(spec.name)}: {_shape(spec)}" for kind, spec in specs),
        f"    costs   {costs.params:,} parameters, {costs.macs:,} multiply-accumulates per image,",
        f"            {costs.weight_bytes:,} bytes of weights and buffers,",
        f"            {costs.peak_activation_bytes:,} bytes of activations at peak",
        "",
        *_missing(network),
        "How to use it:",
        "    from model import load",
        "",
        '    model = load("model.safetensors")',
        f"    {'output' if len(network.outputs) == 1 else 'outputs'} = model({', '.join(forward.parameters)})",
    ]
    return '"""' + "\n".join(lines) + '\n"""'


def _missing(network: Network) -> list[str]:
    """What the uploaded file has and the class has not, as lines."""
    text = _plain_text(left_out(network), kept="',;()[]×")
    return [*textwrap.wrap(text, 100), ""] if text else []


def _shape(spec: TensorSpec) -> str:
    return f"{str(spec.dtype).removeprefix('torch.')} ({', '.join(['batch', *map(str, spec.shape)])})"


def _plain_text(text: str, kept: str = "") -> str:
    """Text with names inside a docstring, where double quotes, backslashes and line breaks would mean something."""
    return re.sub(rf"[^\w.\-:/ {re.escape(kept)}]", "_", text, flags=re.ASCII)


def _class(tree: ModuleTree, forward: Forward) -> str:
    body = 2 * INDENT
    tensors = len(tree.network.outputs)
    result = "torch.Tensor" if tensors == 1 else f"tuple[{', '.join(['torch.Tensor'] * tensors)}]"
    if tensors > 3:
        result = "tuple[torch.Tensor, ...]"
    parameters = ("self", *(f"{name}: torch.Tensor" for name in forward.parameters))
    lines = [
        f"class Model({tree.base_class}):",
        '    """Submodules and tensors have the names of the original checkpoint."""',
        "",
        "    def __init__(self) -> None:",
        *(line for statement in tree.constructor() for line in render(statement, body)),
        "",
        *render(Group("def forward(", parameters, f") -> {result}:"), INDENT),
    ]
    for index, (comment, statement) in enumerate(forward.statements):
        if comment is not None:
            lines += [""] * (index > 0) + [" " * body + comment] * bool(comment)
        lines += render(statement, body)
    return "\n".join(lines) + "\n"


def _compare(network: Network, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        write_safetensors(network, weights, pruned=False)
        model = runpy.run_path(str(path))["load"](weights)
    for batch in _CHECKED_BATCHES:
        inputs = network.random_inputs(batch=batch, seed=batch)
        with torch.no_grad():
            outputs = model(*inputs)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        for spec, got, want in zip(network.outputs, outputs, network.run(*inputs), strict=True):
            error = relative_error(got.numpy(), want.numpy())
            if not error <= _TOLERANCE:
                raise EngineError(
                    "internal",
                    f"The generated model.py differs from the network by {error:.1e} (relative) at output {spec.name!r} "
                    f"for batch {batch}; it is not delivered.",
                )
