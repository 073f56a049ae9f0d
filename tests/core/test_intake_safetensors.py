"""Headers of safetensors files: every lie is found, and what is written reads as it was."""

import json

import pytest
import safetensors
import torch

from core.errors import EngineError
from core.intake import read_state_dict, save_safetensors


def safetensors_bytes(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        ((100_000_001).to_bytes(8, "little") + b"{", "too_large", "100000001"),
        (safetensors_bytes(b"{nonsense"), "invalid_model", "not valid JSON"),
        (safetensors_bytes(b'{"a":' + b"[" * 100_000), "invalid_model", "not valid JSON"),
        (safetensors_bytes(b'{"a":NaN}'), "invalid_model", "not valid JSON"),
        (safetensors_bytes(b'{"a":1,"a":2}'), "invalid_model", "twice"),
        (safetensors_bytes({"a": 3}), "invalid_model", "needs exactly"),
        (safetensors_bytes({"a": {**entry(), "code": "x"}}), "invalid_model", "needs exactly"),
        (safetensors_bytes({"a": entry("F33")}, bytes(4)), "invalid_model", "'F33'"),
        (safetensors_bytes({"a": entry(shape=(-1,))}, bytes(4)), "invalid_model", "impossible shape"),
        (safetensors_bytes({"a": entry(shape=(True,))}, bytes(4)), "invalid_model", "impossible shape"),
        (safetensors_bytes({"a": entry(shape=(2**62, 2**62))}, bytes(4)), "invalid_model", "impossible shape"),
        (safetensors_bytes({"a": entry(shape=(2**39, 2**39))}, bytes(4)), "invalid_model", "needs 12089258196146"),
        (safetensors_bytes({"a": entry(offsets=(4, 0))}, bytes(4)), "invalid_model", "impossible data_offsets"),
        (safetensors_bytes({"a": entry(shape=(2,))}, bytes(4)), "invalid_model", "needs 8 bytes and has 4"),
        (safetensors_bytes({"a": entry(), "b": entry()}, bytes(4)), "invalid_model", "neither overlap nor leave gaps"),
        (safetensors_bytes({"a": entry(offsets=(4, 8))}, bytes(8)), "invalid_model", "neither overlap nor leave gaps"),
        (safetensors_bytes({"a": entry()}, bytes(3)), "invalid_model", "truncated"),
        (safetensors_bytes({"a": entry()}, bytes(5)), "invalid_model", "1 bytes that belong to no tensor"),
        (safetensors_bytes({"__metadata__": {"a": 1}}), "invalid_model", "__metadata__"),
    ],
)
def test_every_lie_of_a_safetensors_header_is_found(data, code, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=message) as caught:
        read_state_dict(path)
    assert caught.value.code == code


def test_safetensors_are_written_for_views_and_shared_tensors(tmp_path):
    base = torch.randn(4, 6)
    path = tmp_path / "model.safetensors"
    save_safetensors({"t": base.t(), "row": base[1], "again": base, "base": base}, path, {"note": "x"})
    found = read_state_dict(path).tensors
    assert torch.equal(found["t"], base.t()) and torch.equal(found["row"], base[1])
    assert torch.equal(found["again"], base) and torch.equal(found["base"], base)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"note": "x"}
