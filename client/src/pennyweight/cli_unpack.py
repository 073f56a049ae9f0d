"""`pennyweight unpack`: a `.pwt` file as safetensors or ONNX. Works on files alone; there is no service in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pennyweight.arguments import AsJson, require_writable
from pennyweight.exit_codes import EXIT_FAILED
from pennyweight.options import OptionError
from pennyweight.session import err, explained, print_json

_SUFFIXES = (".safetensors", ".onnx")


def unpack(
    file: Annotated[Path, typer.Argument(help="The .pwt file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .safetensors or .onnx file to write.")],
    as_json: AsJson = False,
) -> None:
    """Turn a compact .pwt file into .safetensors, or into .onnx where it holds a graph."""
    with explained(as_json=as_json):
        if output.suffix not in _SUFFIXES:
            raise OptionError(f"--output {output}: name a file that ends in {' or '.join(_SUFFIXES)}")
        require_writable("--output", output.parent)
        try:
            from pennyweight import pwt
            from pennyweight.pwt import onnx, safetensors
        except ModuleNotFoundError as error:
            raise OptionError("unpack needs numpy: pip install 'pennyweight[pwt]'") from error
        try:
            with pwt.open(file) as content:
                arrays = {name: content[name] for name in content.names}
                skeleton = content.onnx_skeleton
                if output.suffix == ".onnx":
                    if skeleton is None:
                        raise OptionError(f"{file} holds weights and no graph: write .safetensors")
                    onnx.write(output, skeleton, arrays)
                else:
                    safetensors.write(output, arrays)
        except (pwt.PwtError, OSError) as error:
            err.print(f"{file}: {error}", style="red", markup=False)
            raise typer.Exit(EXIT_FAILED) from error
        size = sum(array.nbytes for array in arrays.values())
        if as_json:
            print_json({"output": str(output), "tensors": len(arrays), "bytes": size})
        else:
            err.print(f"{len(arrays)} tensors, {size} bytes, in {output}")
