"""The page's section on encoding: bits per weight layer by layer, their entropy, and what sharing values cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.deliver import report_parts as page

_MOST_LAYERS = 400


def encoding_html(encoding: Mapping[str, Any] | None, int8: Mapping[str, Any] | None) -> str:
    """Nothing where nothing was encoded."""
    return (_encoding(encoding) if encoding else "") + (_int8(int8) if int8 else "")


def _encoding(encoding: Mapping[str, Any]) -> str:
    layers = encoding["layers"]
    if not layers:
        return page.paragraph(f"model.pwt holds the weights as they are: {encoding['file_bytes']:,} bytes.")
    total = (
        f"{encoding['weights']:,} weights by {encoding['quantizer']}: {encoding['bits_per_weight']:.3f} bits each, "
        f"ψ = {encoding['psi']:.2%} of float32; {encoding['coded_bytes']:,} bytes where the entropy of the indices and "
        f"the codebooks come to {encoding['entropy_bytes']:,}. The whole of model.pwt is {encoding['file_bytes']:,} bytes, "
        f"of them {encoding['kept_whole_bytes']:,} of tensors that are kept whole."
    )
    parts = [page.paragraph(total)]
    accuracy = encoding.get("accuracy")
    if accuracy:
        rows = [(name, *(f"{accuracy[name][split]:.2%}" for split in ("val", "test"))) for name in ("before", "after")]
        parts.append(page.table(("accuracy", "validation", "test"), rows))
    for measure, title in (("validation_accuracy", "validation accuracy"), ("output_error", "output error")):
        scores = encoding.get(measure)
        if scores:
            show = "{:.2%}" if measure == "validation_accuracy" else "{:.4g}"
            parts.append(page.table(("stage", title), [(page.words(n), show.format(v)) for n, v in scores.items()]))
    rows = [
        (
            layer["name"],
            f"{layer['weights']:,}",
            str(layer["levels"]),
            f"{layer['zeros'] / layer['weights']:.1%}",
            layer["format"],
            f"{layer['bytes']:,}",
            f"{layer['bits_per_weight']:.3f}",
            f"{layer['entropy_bits_per_weight']:.3f}",
        )
        for layer in layers[:_MOST_LAYERS]
    ]
    head = ("layer", "weights", "values", "zeros", "format", "bytes", "bits per weight", "entropy")
    return "".join([*parts, page.table(head, rows)])


def _int8(int8: Mapping[str, Any]) -> str:
    rows = [("bytes", f"{int8['float_file_bytes']:,}", f"{int8['file_bytes']:,}")]
    if int8["accuracy"] is not None:
        rows.append(("accuracy (test)", f"{int8['float_accuracy']:.2%}", f"{int8['accuracy']:.2%}"))
    rows.append(("output error", "", f"{int8['output_error']:.4g}"))
    return page.table(("model.int8.onnx", "float", "int8"), rows)
