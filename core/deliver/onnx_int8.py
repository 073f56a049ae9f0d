"""`model.int8.onnx`: weights and activations in eight bits, by ONNX Runtime's static quantisation (QDQ).

Ranges of activations come from calibration images, which are training images. What the file costs is measured by running it
in ONNX Runtime on the test images, beside the float file.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from core.deliver.onnx_file import open_session, write_onnx
from core.errors import EngineError, first_line, is_out_of_memory
from core.network import Network
from core.recovery.dataset import ImageDataset
from core.recovery.evaluation import batch_size_for, top1
from core.recovery.images import Images
from core.version import VERSION

CALIBRATION_IMAGES = 256
_HELD_OUT_IMAGES = 512


def write_onnx_int8(network: Network, dataset: ImageDataset, path: Path) -> dict[str, Any]:
    """Write the file and say what it does, as JSON: accuracy of both files (None without labels), distance of outputs.

    Raises EngineError("invalid_request") where the network cannot be quantised so.
    """
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "model.onnx"
        write_onnx(network, plain)
        size = 1 if network.interface.batch_size == 1 else min(16, batch_size_for(dataset.image_shape, _CPU))
        images = dataset.train.sample(CALIBRATION_IMAGES).images
        try:
            with _quiet():
                quantize_static(
                    str(plain),
                    str(path),
                    _Calibration(network.inputs[0].name, images, dataset, size),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                )
        except Exception as error:
            if is_out_of_memory(error):  # says nothing of the graph: the job is to fail for the memory that it lacks
                raise
            # Whatever the library cannot do with a graph, it says in an exception of its own making.
            raise EngineError(
                "invalid_request",
                f"ONNX Runtime cannot quantise this network to int8 ({first_line(error)}). Leave onnx-int8 out.",
                param="/outputs",
            ) from error
        _without_traces(path)
        sessions = [open_session(one) for one in (plain, path)]
        held_out = dataset.val.sample(_HELD_OUT_IMAGES).images
        wanted, found = (_outputs(session, held_out, dataset, size) for session in sessions)
        accuracies = [None, None]
        if dataset.labelled:
            accuracies = [
                top1(torch.from_numpy(_outputs(session, dataset.test.images, dataset, size)), dataset.test.labels)
                for session in sessions
            ]
        return {
            "file_bytes": path.stat().st_size,
            "float_file_bytes": plain.stat().st_size,
            "accuracy": accuracies[1],
            "float_accuracy": accuracies[0],
            "output_error": float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)),
            "calibration_images": len(images),
            "runtime": f"onnxruntime {onnxruntime.__version__}",
        }


_CPU = torch.device("cpu")


class _Calibration(CalibrationDataReader):
    """Batches of prepared images under the input's name."""

    def __init__(self, name: str, images: Images, dataset: ImageDataset, size: int) -> None:
        self._batches = ({name: dataset.prepare(batch).numpy()} for batch in images.split(size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _outputs(session: onnxruntime.InferenceSession, images: Images, dataset: ImageDataset, size: int) -> np.ndarray:
    """The first output for stored images, float32 [n, …]."""
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: dataset.prepare(batch).numpy()})[0] for batch in images.split(size)]
    )


def _without_traces(path: Path) -> None:
    """Who made it, and nothing of how."""
    model = onnx.load(path)
    model.producer_name, model.producer_version = "pennyweight", VERSION
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library recommends steps of its own to whoever calls it, on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
