"""Intake: an uploaded file becomes a `Network`, and nothing in it is ever run.

load_network(path, architecture="cifar_resnet20")  →  Network
    sniff the container by content        core/intake/formats.py
    read it                               safetensors_file, zip_file, stream_file
    interpret its pickle                  machine (operations), symbols (names), stored (tensors)
    unwrap, widen, check the values       state_dict
    match with the architecture           core/architectures

load_network("model.onnx")                         →  Network
    read the graph, node by node          onnx/
"""

from core.intake.loading import file_format, load_network
from core.intake.safetensors_file import save_safetensors
from core.intake.state_dict import StateDict, read_state_dict

__all__ = ["StateDict", "file_format", "load_network", "read_state_dict", "save_safetensors"]
