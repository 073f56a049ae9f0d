"""A checkpoint with random bytes changed is read or refused with a code; nothing else can come out of it."""

import io

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import EngineError
from core.intake import read_state_dict


def checkpoint(container):
    values = {"conv.weight": torch.randn(2, 3).t(), "n": torch.tensor(3), "half": torch.ones(3, dtype=torch.float16)}
    if container == "safetensors":
        return safetensors.torch.save({name: tensor.contiguous() for name, tensor in values.items()})
    buffer = io.BytesIO()
    wrapped = {"state_dict": values, "epoch": 3, "names": ["a", ("b", {1, 2})]}
    torch.save(wrapped, buffer, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["safetensors", "zip", "stream"])
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_give_a_state_dict_or_a_refusal(container, tmp_path, data):
    content = bytearray(checkpoint(container))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(("set", "insert", "delete")))
        if kind == "delete":
            del content[position : position + data.draw(st.integers(1, 8))]
        else:
            patch = data.draw(st.binary(min_size=1, max_size=8))
            content[position : position + (len(patch) if kind == "set" else 0)] = patch
        if not content:
            break
    path = tmp_path / "model"
    path.write_bytes(content)
    try:
        state = read_state_dict(path)
    except EngineError as error:
        assert error.code in {"invalid_model", "unsafe_model", "unsupported_format", "too_large"}
        assert len(error.message) < 2000
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.tensors.values())
        assert sum(tensor.nbytes for tensor in state.tensors.values()) < 64 * len(content)
