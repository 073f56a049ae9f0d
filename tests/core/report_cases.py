"""A small `result` object, as the engine composes it, to show and to write."""

from __future__ import annotations

from typing import Any


def result(layers: int = 3, name: str = "layer{}.conv", **more: Any) -> dict[str, Any]:
    side = {"params": 100, "macs": 1000, "flops": 2000, "memory_bytes": 800, "accuracy": 0.9, "latency_ms": None}
    rows = [
        {
            "name": name.format(index),
            "type": "conv2d",
            "before": {"out": 16, "params": 2304, "macs": 2359296},
            "after": {"out": 9, "params": 1296, "macs": 1327104 + index},
        }
        for index in range(layers)
    ]
    return {
        "met": True,
        "constraints": [{"metric": "memory", "kind": "total", "limit": 1000, "value": 800, "met": True}],
        "baseline": side,
        "compressed": {**side, "params": 50, "accuracy": 0.88},
        "equivalence": {"passed": True, "max_relative_error": 3e-14, "checked": 9, "insensitive": [], "unproven": []},
        "layers": rows,
        "frozen": [{"layer": name.format(0), "operator": "softmax", "reason": "needs all"}],
        "changed": [],
        "folded": [],
        "plan": {"note": "The cap binds."},
        "recovery": {"method": "fine_tuning", "training": {"curve": [[1, 2.0], [2, 1.5], [3, 1.25]]}},
        "artifacts": [{"name": "model.onnx", "media_type": "x", "size": 123, "sha256": "ab" * 32}],
        "provenance": {"architecture": "cifar_resnet20", "seed": 0},
        **more,
    }
