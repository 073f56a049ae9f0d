"""The `.pwt` file: whole round trips, and the client's reader held to the same files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pennyweight
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from pennyweight import cli, pwt
from pennyweight.pwt import onnx as pwt_onnx
from safetensors.numpy import load_file
from typer.testing import CliRunner

from core.encoding.container import read_pwt, write_pwt
from core.encoding.formats import FORMATS, EncodingError, encoded_bytes
from core.encoding.quantized import QuantizedTensor


def shared(shape: tuple[int, ...], levels: int, density: float, seed: int = 0) -> QuantizedTensor:
    generator = np.random.default_rng(seed)
    codebook = np.concatenate([[0], np.sort(generator.normal(size=levels))]).astype(np.float32)
    indices = np.where(generator.random(shape) < density, generator.integers(1, levels + 1, shape), 0)
    return QuantizedTensor(indices, codebook, 0)


def network() -> dict[str, QuantizedTensor | np.ndarray]:
    generator = np.random.default_rng(1)
    return {
        "conv.weight": shared((24, 16, 3, 3), 40, 0.5),
        "fc.weight": shared((120, 300), 16, 0.03),
        "fc.bias": generator.normal(size=120).astype(np.float32),
        "bn.num_batches_tracked": np.array(7),
        "half": generator.normal(size=(3, 2)).astype(np.float16),
        "flags": np.array([[True], [False]]),
        "empty": np.zeros((0, 4), np.float32),
        "negative zero": np.array([[-0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32),
        "not a number": np.where(np.eye(9), np.nan, 0).astype(np.float32),
        "pruned": np.where(generator.random((50, 40)) < 0.1, generator.normal(size=(50, 40)), 0).astype(np.float32),
    }


def values_of(value: QuantizedTensor | np.ndarray) -> np.ndarray:
    return value.values() if isinstance(value, QuantizedTensor) else value


@pytest.mark.parametrize("format", ["auto", *FORMATS])
def test_file_gives_everything_back_bit_for_bit_to_both_readers(tmp_path, format):
    path, tensors, about = tmp_path / "model.pwt", network(), {"architecture": "x", "nested": [1, {"a": None}]}
    summary = write_pwt(path, tensors, about, format, skeleton=b"graph" * 100)
    assert summary.file_bytes == path.stat().st_size
    found, found_about = read_pwt(path)
    assert found_about == about
    assert list(found) == list(tensors)
    with pwt.open(path) as file:
        assert file.about == about
        assert file.names == list(tensors)
        assert file.onnx_skeleton == b"graph" * 100
        for name, value in tensors.items():
            expected = values_of(value)
            for other in (values_of(found[name]), file[name]):
                assert other.tobytes() == expected.tobytes()
                assert (other.shape, other.dtype) == (expected.shape, expected.dtype)
            if isinstance(value, QuantizedTensor):
                assert (found[name].indices == value.indices).all()
                assert (file.format(name), summary.bytes_of[name]) == (
                    summary.format_of[name],
                    encoded_bytes(value, summary.format_of[name]),
                )


def test_plain_arrays_with_many_zeros_are_stored_by_their_survivors(tmp_path):
    summary = write_pwt(tmp_path / "x.pwt", network(), {})
    assert summary.format_of["pruned"] == "csc"
    assert summary.format_of["fc.bias"] == "raw"
    assert summary.bytes_of["pruned"] < 50 * 40 * 4 / 5


@settings(max_examples=25)
@given(st.data(), st.sampled_from(["raw", *FORMATS]))
def test_columns_are_slices_of_the_first_axis(data, format):
    value = shared((17, 5, 3), 9, 0.3)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.pwt"
        write_pwt(path, {"w": value if format != "raw" else value.values()}, {}, format if format != "raw" else "im")
        start = data.draw(st.integers(0, 17))
        stop = data.draw(st.integers(start, 17))
        with pwt.open(path) as file:
            assert file.columns("w", start, stop).tobytes() == value.values()[start:stop].tobytes()
            with pytest.raises(IndexError):
                file.columns("w", 0, 18)


def test_what_cannot_be_stored_is_refused_with_the_tensors_name(tmp_path):
    bad = QuantizedTensor(np.array([3]), np.array([1.0, 2.0], np.float32))
    with pytest.raises(EncodingError, match=r"layer\.weight: an index is outside the 2 levels"):
        write_pwt(tmp_path / "x.pwt", {"layer.weight": bad}, {})
    with pytest.raises(EncodingError, match="no format 'zip'"):
        write_pwt(tmp_path / "x.pwt", {"layer.weight": shared((2, 2), 2, 1.0)}, {}, "zip")


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [("w", np.zeros(3, np.uint16), "unknown_type"), ("w", np.zeros([1] * 9), "bad_shape"), ("a\n", np.zeros(3), "bad_name")],
)  # fmt: skip
def test_nothing_is_written_that_no_reader_would_take(tmp_path, name, array, told):
    with pytest.raises(EncodingError, match=told):
        write_pwt(tmp_path / "x.pwt", {name: array}, {})
    assert not (tmp_path / "x.pwt").exists()


def test_reader_needs_numpy_and_nothing_else(tmp_path):
    """The folder works alone, in a Python that can import nothing but the standard library and numpy."""
    write_pwt(tmp_path / "x.pwt", network(), {})
    shutil.copytree(Path(pennyweight.__file__).parent / "pwt", tmp_path / "pwt")
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "pwt"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import pwt, pwt.onnx, pwt.safetensors
print(sum(array.size for array in pwt.load("x.pwt").values()))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert int(done.stdout) == sum(values_of(value).size for value in network().values())


def onnx_model(weights: dict[str, np.ndarray], kept: np.ndarray) -> onnx.ModelProto:
    """conv → relu → flatten → matmul, with one initialiser that no .pwt file holds."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv.weight"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Reshape", ["r", "shape"], ["f"]),
            helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [
            *(numpy_helper.from_array(value, name) for name, value in weights.items()),
            numpy_helper.from_array(kept, "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("format", ["auto", "hac", "shac", "im"])
def test_onnx_comes_back_and_computes_the_same_bits(tmp_path, format):
    tensors = {
        "conv.weight": shared((4, 3, 3, 3), 15, 0.7),
        "fc.weight": shared((10, 256), 15, 0.2),
        "fc.bias": np.linspace(-1, 1, 10).astype(np.float32),
    }
    whole = onnx_model({name: values_of(value) for name, value in tensors.items()}, np.array([1, -1]))
    bare = onnx.ModelProto.FromString(whole.SerializeToString())
    for initializer in bare.graph.initializer:
        if initializer.name in tensors:
            initializer.ClearField("raw_data")
    write_pwt(tmp_path / "m.pwt", tensors, {}, format, skeleton=bare.SerializeToString())
    done = CliRunner().invoke(cli.app, ["unpack", str(tmp_path / "m.pwt"), "-o", str(tmp_path / "m.onnx")])
    assert done.exit_code == 0, done.output
    back = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(back)
    assert back == whole
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected, found = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": image})[0] for model in (whole, back)
    )
    assert found.tobytes() == expected.tobytes()


def test_safetensors_come_back(tmp_path):
    write_pwt(tmp_path / "m.pwt", network(), {})
    done = CliRunner().invoke(cli.app, ["unpack", str(tmp_path / "m.pwt"), "-o", str(tmp_path / "m.safetensors")])
    assert done.exit_code == 0, done.output
    found = load_file(tmp_path / "m.safetensors")
    for name, value in network().items():
        assert found[name].tobytes() == values_of(value).tobytes()
        assert found[name].dtype == values_of(value).dtype


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("m.onnx", 2, "weights and no graph"),
        ("m.txt", 2, ".safetensors or .onnx"),
        ("m.safetensors", 0, "tensors"),
    ],
)
def test_unpack_says_what_it_cannot_do(tmp_path, output, code, words):
    write_pwt(tmp_path / "m.pwt", {"b": np.ones(3, np.float32)}, {})
    done = CliRunner().invoke(cli.app, ["unpack", str(tmp_path / "m.pwt"), "-o", str(tmp_path / output)])
    assert done.exit_code == code
    assert words in " ".join(done.output.split())


def test_unpack_refuses_a_damaged_file_in_words(tmp_path):
    write_pwt(tmp_path / "m.pwt", {"b": np.ones(3, np.float32)}, {})
    (tmp_path / "m.pwt").write_bytes((tmp_path / "m.pwt").read_bytes()[:-1])
    done = CliRunner().invoke(cli.app, ["unpack", str(tmp_path / "m.pwt"), "-o", str(tmp_path / "m.safetensors")])
    assert done.exit_code == 4
    assert "truncated" in done.output
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("damage", [b"", b"\x3a\x05ab", b"\xff" * 12, b"\x08", b"\x3b\x00", b"\x3a\x03\x2a\x01\x08"])
def test_a_skeleton_that_is_no_model_is_refused(tmp_path, damage):
    with pytest.raises(pwt.PwtError) as caught:
        pwt_onnx.write(tmp_path / "x.onnx", damage, {})
    assert caught.value.code == "bad_skeleton"


def test_a_skeleton_for_other_weights_is_refused(tmp_path):
    whole = onnx_model({"conv.weight": np.zeros((4, 3, 3, 3), np.float32)}, np.array([1, -1]))
    whole.graph.initializer[0].ClearField("raw_data")
    for arrays in ({}, {"conv.weight": np.zeros((4, 3, 3), np.float32)}, {"conv.weight": np.zeros((4, 3, 3, 3))}):
        with pytest.raises(pwt.PwtError) as caught:
            pwt_onnx.write(tmp_path / "x.onnx", whole.SerializeToString(), arrays)
        assert caught.value.code == "bad_skeleton"
