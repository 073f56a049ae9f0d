"""Deliver: write what was asked for, in forms that load anywhere.

`onnx` → model.onnx; `pt2` → model.pt2; `safetensors` → model.safetensors and model.py; `pwt` → model.pwt;
`onnx-int8` → model.int8.onnx; `report` → report.json and report.html. Always manifest.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.deliver.artifacts import Artifact, write_json, write_manifest, write_safetensors
from core.deliver.latency import Latency, measure_latencies, measure_latency
from core.deliver.model_py import write_model_py
from core.deliver.notices import Notice, notices
from core.deliver.onnx_file import write_onnx
from core.deliver.onnx_int8 import write_onnx_int8
from core.deliver.pt2_file import write_pt2
from core.deliver.pwt_file import Compact, deliver_pwt
from core.deliver.report_html import report_html
from core.errors import EngineError
from core.network import Network
from core.recovery import ImageDataset

OUTPUTS = ("onnx", "onnx-int8", "pt2", "safetensors", "pwt", "report")
NO_CALIBRATION = "The output onnx-int8 needs images to calibrate it with: give a dataset, or leave it out."
_PAGE = "report.html"
_WRITTEN_LAST = (_PAGE, "report.json", "manifest.json")


@dataclass(frozen=True)
class Delivery:
    """What was written into `folder`, and what only the files can tell.

    size_bytes: of model.pwt, or else of the network as safetensors, whether or not that was asked for. latency: None without ONNX.
    int8: what the int8 file does, JSON for the report; None without it. notices: what a form lacks of the upload.
    """

    folder: Path
    outputs: tuple[str, ...]
    size_bytes: int
    original_size_bytes: int
    latency: Latency | None
    original_latency: Latency | None
    int8: dict[str, Any] | None = None
    notices: tuple[Notice, ...] = ()

    def artifacts(self) -> list[dict[str, Any]]:
        """Every file of the folder but the reports and the manifest."""
        paths = sorted(path for path in self.folder.iterdir() if path.name not in _WRITTEN_LAST)
        return [Artifact.of(path).as_dict() for path in paths]

    def write_report(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Last: the report, if asked for, and the manifest over everything. Returns `result` with its page listed."""
        result = dict(result)
        if "report" in self.outputs:
            page = self.folder / _PAGE
            page.write_text(report_html(result), encoding="utf-8")
            result["artifacts"] = [*result["artifacts"], Artifact.of(page).as_dict()]
            write_json(result, self.folder / "report.json")
        write_manifest(self.folder)
        return result


def deliver(
    original: Network,
    network: Network,
    outputs: Sequence[str],
    folder: Path,
    *,
    compact: Compact | None = None,
    onnx_opset: int | None = None,
    dataset: ImageDataset | None = None,
) -> Delivery:
    """Write the asked-for forms of `network` into `folder` and measure them beside the original's.

    compact: how model.pwt stores it. With it the ONNX file has the network's own weights, batch-norms not folded in. dataset: images to
    calibrate an int8 file with.
    """
    unknown = sorted(set(outputs) - set(OUTPUTS))
    if unknown:
        raise EngineError(
            "invalid_request", f"Unknown output {unknown[0]!r}; there are {', '.join(OUTPUTS)}.", param="/outputs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    pruned = network.tensors.keys() != original.tensors.keys() or any(
        tensor.shape != original.tensors[name].shape for name, tensor in network.tensors.items()
    )
    latency = original_latency = None
    with tempfile.TemporaryDirectory() as scratch:
        original_size = _safetensors_size(original, Path(scratch), pruned=False)
        size = _safetensors_size(network, Path(scratch), pruned=pruned)
        if "onnx" in outputs:
            write_onnx(network, folder / "model.onnx", fold=compact is None, opset=onnx_opset)
            latency, original_latency = _latencies(original, Path(scratch), network, folder / "model.onnx", onnx_opset)
    if "pt2" in outputs:
        write_pt2(network, folder / "model.pt2")
    if "safetensors" in outputs:
        write_safetensors(network, folder / "model.safetensors", pruned=pruned)
        write_model_py(network, folder / "model.py")
    if "pwt" in outputs and compact is not None:
        size = deliver_pwt(network, compact, folder / "model.pwt").file_bytes
    int8 = None
    if "onnx-int8" in outputs:
        if dataset is None:
            raise EngineError("dataset_invalid", NO_CALIBRATION, param="/outputs")
        int8 = write_onnx_int8(network, dataset, folder / "model.int8.onnx")
    said = notices(network, outputs, graph_in_pwt=compact is not None and compact.skeleton is not None)
    return Delivery(folder, tuple(outputs), size, original_size, latency, original_latency, int8, tuple(said))


def _latencies(
    original: Network, scratch: Path, network: Network, path: Path, opset: int | None
) -> tuple[Latency, Latency | None]:
    """Of the network and of the original; one that cannot be written as ONNX is no reason to withhold the result."""
    beside = scratch / "original.onnx"
    try:
        write_onnx(original, beside, compare=False, opset=opset)
    except EngineError:
        return measure_latency(path, network), None
    latency, original_latency = measure_latencies([(path, network), (beside, original)])
    return latency, original_latency


def _safetensors_size(network: Network, scratch: Path, *, pruned: bool) -> int:
    path = scratch / "weights.safetensors"
    write_safetensors(network, path, pruned=pruned)
    return path.stat().st_size
