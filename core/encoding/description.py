"""What the report says of an encoding: per layer and in all, bits per weight beside their entropy, and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.deliver.pwt_file import Compact
from core.encoding.allocation import index_entropy
from core.encoding.container import PwtSummary
from core.encoding.options import EncodingOptions
from core.encoding.quantized import QuantizedTensor

_FLOAT_BITS = 32


def describe_encoding(options: EncodingOptions, compact: Compact, summary: PwtSummary) -> dict[str, Any]:
    """JSON. psi: coded bytes of the kernels over their bytes as float32, as the papers count; codebooks are in both."""
    layers = [_layer(name, tensor, summary) for name, tensor in compact.tensors.items()]
    weights = sum(layer["weights"] for layer in layers)
    coded = sum(layer["bytes"] for layer in layers)
    bound = sum(layer["entropy_bytes"] for layer in layers)
    return {
        "quantizer": options.quantizer,
        "levels": options.levels,
        "prune": options.prune,
        "unified": options.unified,
        "format": options.format,
        "file_bytes": summary.file_bytes,
        "weights": weights,
        "kept_whole_bytes": sum(summary.bytes_of.values()) - coded,
        "coded_bytes": coded,
        "entropy_bytes": bound,
        "bits_per_weight": round(8 * coded / weights, 4) if weights else float(_FLOAT_BITS),
        "psi": round(8 * coded / (_FLOAT_BITS * weights), 6) if weights else 1.0,
        "layers": layers,
    }


def _layer(name: str, tensor: QuantizedTensor, summary: PwtSummary) -> dict[str, Any]:
    weights = tensor.indices.size
    zeros = 0 if tensor.zero is None else int((tensor.indices == tensor.zero).sum())
    entropy = index_entropy(np.asarray(tensor.indices))
    return {
        "name": name,
        "weights": weights,
        "levels": len(tensor.codebook) - (tensor.zero is not None),
        "zeros": zeros,
        "format": summary.format_of[name],
        "bytes": summary.bytes_of[name],
        "bits_per_weight": round(8 * summary.bytes_of[name] / weights, 4),
        "entropy_bits_per_weight": round(entropy, 4),
        "entropy_bytes": -(-int(np.ceil(entropy * weights)) // 8) + 4 * len(tensor.codebook),
    }
