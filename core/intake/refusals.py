"""How intake says no: one function per reason, so that every refusal says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import EngineError

SAVE_WEIGHTS = 'save the weights alone, e.g. safetensors.torch.save_file(model.state_dict(), "model.safetensors")'
ACCEPTED = (
    "Accepted: the weights of a network (a state_dict) as .safetensors, or as .pt/.pth/.th written by torch.save; or a "
    "whole network as .onnx with float weights, or as the .pt2 of torch.export.save."
)


def unsafe(what: str, details: Mapping[str, Any] | None = None) -> EngineError:
    return EngineError("unsafe_model", f"{what} Nothing in the file was run; {SAVE_WEIGHTS}.", details=details)


def invalid(what: str, details: Mapping[str, Any] | None = None) -> EngineError:
    return EngineError("invalid_model", what, details=details)


def damaged(what: str) -> EngineError:
    return EngineError("invalid_model", f"{what} The file is truncated or damaged; upload it again.")


def too_large(what: str) -> EngineError:
    return EngineError("too_large", f"{what} Leave out optimizer states and logs: {SAVE_WEIGHTS}.")


def unsupported(what: str) -> EngineError:
    return EngineError("unsupported_format", f"{what} {ACCEPTED}")
