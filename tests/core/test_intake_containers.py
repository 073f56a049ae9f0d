"""Our readers give what PyTorch's own reader gives, for every container, and say clearly what is wrong with a file."""

import collections
import io
import math
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import EngineError
from core.intake import read_state_dict, save_safetensors
from core.intake.state_dict import read_checkpoint
from core.intake.stored import StoredTensor, read_tensors

CONTAINERS = ("zip", "stream")
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
# PyTorch writes these with untyped storages, and its own reader of the stream form cannot read them back.
UNTYPED = (torch.float8_e4m3fn, torch.uint16)


def save(value, path, container, protocol=2):
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")


def raw(tensor):
    return tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def assert_same(found, expected, storages):
    """Structure, types of containers and every bit of every tensor."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, StoredTensor)
        tensor = read_tensors({"it": found}, storages)["it"]
        assert tensor.shape == expected.shape and tensor.dtype == expected.dtype
        assert torch.equal(raw(tensor), raw(expected))
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert isinstance(found, collections.OrderedDict) == isinstance(expected, collections.OrderedDict)
        for key, value in expected.items():
            assert_same(found[key], value, storages)
    elif isinstance(expected, (list, tuple)):
        assert isinstance(found, tuple if isinstance(expected, tuple) else list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, storages)
    else:
        assert type(found) is type(expected)
        assert found == expected or (found != found and expected != expected)


@st.composite
def tensors(draw, dtypes):
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    seed = draw(st.integers(0, 2**16))
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    bits = np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, math.prod(shape) * dtype.itemsize)
    tensor = torch.from_numpy(bits.astype(np.uint8)).view(dtype).reshape(shape)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(("transpose", "step", "select", "unsqueeze", "parameter")))
        if kind == "unsqueeze":
            tensor = tensor.unsqueeze(draw(st.integers(0, tensor.ndim)))
        elif kind == "parameter" and tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            tensor = torch.nn.Parameter(tensor, requires_grad=draw(st.booleans()))
        elif tensor.ndim and kind == "transpose":
            tensor = tensor.transpose(draw(st.integers(0, tensor.ndim - 1)), draw(st.integers(0, tensor.ndim - 1)))
        elif tensor.ndim and kind == "step":
            axis = draw(st.integers(0, tensor.ndim - 1))
            start, step = draw(st.integers(0, 2)), draw(st.integers(1, 3))
            tensor = tensor[(slice(None),) * axis + (slice(start, None, step),)]
        elif tensor.ndim and kind == "select" and tensor.shape[0]:
            tensor = tensor[draw(st.integers(0, tensor.shape[0] - 1))]
    return tensor if isinstance(tensor, torch.nn.Parameter) else tensor.detach()


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([torch.float16, torch.int64])
)
keys = st.text(max_size=8) | st.integers(-(2**40), 2**40)


def trees(dtypes):
    return st.recursive(
        scalars | tensors(dtypes),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(keys, inner, max_size=4)
            | st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict)
            | st.lists(inner, max_size=4).map(tuple)
            | st.sets(st.integers(0, 9) | st.text(max_size=3), max_size=3)
        ),
        max_leaves=12,
    )


relaxed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("container", CONTAINERS)
@relaxed
@given(data=st.data())
def test_any_saved_object_reads_as_pytorch_reads_it(container, tmp_path, data):
    value = data.draw(trees(DTYPES + UNTYPED if container == "zip" else DTYPES))
    path = tmp_path / "checkpoint"
    save(value, path, container)
    expected = torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint.container == container
    assert_same(checkpoint.root, expected, checkpoint.storages)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_pickle_protocol_is_read(container, protocol, tmp_path):
    value = {"state_dict": collections.OrderedDict(w=torch.arange(6.0).reshape(2, 3).t()), "epoch": 3, "tags": {"a"}}
    path = tmp_path / "checkpoint"
    save(value, path, container, protocol)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.root, value, checkpoint.storages)


@relaxed
@given(value=st.dictionaries(st.text(min_size=1, max_size=8), tensors(DTYPES + UNTYPED), max_size=6))
def test_safetensors_read_as_the_library_reads_them(tmp_path, value):
    path = tmp_path / "model.safetensors"
    value.pop("__metadata__", None)
    save_safetensors(value, path, {"format": "pt"})
    expected = safetensors.torch.load_file(path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.root.keys() == expected.keys()
    for name, tensor in read_tensors(checkpoint.root, checkpoint.storages).items():
        assert tensor.dtype == expected[name].dtype and tensor.shape == expected[name].shape
        assert torch.equal(raw(tensor), raw(expected[name]))


def weights():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return module.state_dict()


def assert_equal_weights(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        assert found[name].is_contiguous()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["state_dict", "model", "net", "model_state_dict", "weights_of_mine"])
def test_wrappers_are_removed(container, name, tmp_path):
    expected = weights()
    optimizer = {"state": {0: {"momentum": torch.zeros(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = tmp_path / "checkpoint.pth"
    save({"epoch": 7, name: expected, "optimizer": optimizer, "best_acc": np.float64(0.9)}, path, container)
    state = read_state_dict(path)
    assert state.unwrapped == (name,) and state.container == container
    assert_equal_weights(state.tensors, expected)


def test_nested_wrappers_and_prefixes_are_removed_together(tmp_path):
    expected = weights()
    path = tmp_path / "checkpoint.pth"
    named = {f"module._orig_mod.{name}": tensor for name, tensor in expected.items()}
    torch.save({"model": {"state_dict": named, "version": 2}}, path)
    state = read_state_dict(path)
    assert state.unwrapped == ("model", "state_dict", "module.", "_orig_mod.")
    assert_equal_weights(state.tensors, expected)


def test_compiled_submodules_lose_their_prefix_inside_the_name(tmp_path):
    path = tmp_path / "m.safetensors"
    save_safetensors({"stem.weight": torch.ones(1), "body._orig_mod.0.weight": torch.ones(2)}, path)
    assert list(read_state_dict(path).tensors) == ["body.0.weight", "stem.weight"]


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    path = tmp_path / "m.safetensors"
    save_safetensors({"module.weight": torch.ones(1), "head.weight": torch.ones(2)}, path)
    state = read_state_dict(path)
    assert set(state.tensors) == {"module.weight", "head.weight"} and state.unwrapped == ()


def test_names_that_collide_without_their_prefix_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_safetensors({"a._orig_mod.w": torch.ones(1), "a.w": torch.ones(2)}, path)
    with pytest.raises(EngineError, match="same name"):
        read_state_dict(path)


@pytest.mark.parametrize("container", [*CONTAINERS, "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_widths_become_float32_and_integers_stay(container, dtype, tmp_path):
    values = {"w": torch.randn(5, 3).to(dtype), "steps": torch.tensor(9)}
    path = tmp_path / "model"
    if container == "safetensors":
        save_safetensors(values, path)
    else:
        save(values, path, container)
    found = read_state_dict(path).tensors
    assert found["w"].dtype == torch.float32 and torch.equal(found["w"], values["w"].float())
    assert found["steps"].dtype == torch.int64 and found["steps"].item() == 9


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_floats_are_named(dtype, container, tmp_path):
    path = tmp_path / "model.pt"
    save({"conv.weight": torch.ones(2).to(dtype)}, path, container)
    with pytest.raises(EngineError, match=r"'conv.weight' has element type (complex64|float8_e4m3fn)") as caught:
        read_state_dict(path)
    assert caught.value.code == "invalid_model"


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(3), "b.weight": torch.tensor([1.0, value], dtype=torch.float64)}, path)
    with pytest.raises(EngineError, match=r"b\.weight \(1 of 2 values\)") as caught:
        read_state_dict(path)
    assert caught.value.code == "invalid_model"
    assert caught.value.details["tensors"]["count"] == 1


def test_tied_weights_stay_tied(tmp_path):
    shared = torch.randn(3, 3)
    path = tmp_path / "model.pt"
    torch.save({"encoder.weight": shared, "decoder.weight": shared, "other": shared[0]}, path)
    found = read_state_dict(path).tensors
    assert found["encoder.weight"].data_ptr() == found["decoder.weight"].data_ptr()
    assert torch.equal(found["other"], shared[0])


def test_weights_do_not_depend_on_the_file_once_read(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"w": torch.full((1000,), 3.0)}, path)
    found = read_state_dict(path).tensors
    path.write_bytes(b"")
    assert found["w"].sum() == 3000


@pytest.mark.parametrize("container", CONTAINERS)
def test_numbers_of_numpy_are_read_as_plain_numbers(container, tmp_path):
    path = tmp_path / "model.pt"
    save(
        {"acc": np.float64(0.93), "n": np.int32(-4), "big": np.array(2.5, dtype=">f4")[()], "ok": np.bool_(True)},
        path,
        container,
    )
    assert read_checkpoint(path).root == {"acc": 0.93, "n": -4, "big": 2.5, "ok": True}


@pytest.mark.parametrize("container", [*CONTAINERS, "safetensors"])
def test_a_truncated_file_is_refused_at_every_length(container, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    values = {"a": torch.randn(7), "b": torch.randn(2, 3)}
    save_safetensors(values, whole) if container == "safetensors" else save(values, whole, container)
    data = whole.read_bytes()
    assert len(read_state_dict(whole).tensors) == 2
    for size in [*range(1, min(len(data), 400), 7), *range(400, len(data), 31), len(data) - 1]:
        part.write_bytes(data[:size])
        with pytest.raises(EngineError) as caught:
            read_state_dict(part)
        assert caught.value.code in {"invalid_model", "unsupported_format"}
    assert "truncated" in caught.value.message or "needs" in caught.value.message


def zip_of(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def tar_of(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", "invalid_model", "empty"),
        (b"hello, I am not a checkpoint", "unsupported_format", "not a checkpoint"),
        (b"\x00", "unsupported_format", "not a checkpoint"),
        (bytes(4096), "unsupported_format", "not a checkpoint"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "unsupported_format", "7z"),
        (b"\x1f\x8b\x08" + bytes(99), "unsupported_format", "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "unsupported_format", "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "unsupported_format", "LFS pointer"),
        (b"<!DOCTYPE html><html>", "unsupported_format", "web page"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "unsupported_format", "ONNX"),
        (tar_of("sys_info"), "unsupported_format", "tar"),
        (zip_of("m/data.pkl", "m/constants.pkl", "m/code/x.py"), "unsupported_format", "TorchScript"),
        (zip_of("m/archive_format", "m/models/model.json"), "unsupported_format", r"\.pt2"),
        (zip_of("arr_0.npy"), "unsupported_format", "NumPy"),
        (zip_of("word/document.xml", "readme"), "unsupported_format", "no data.pkl"),
        (b"\x80\x02}q\x00.", "unsupported_format", "plain pickle"),
        (b"\x80\x02", "invalid_model", "truncated"),
        (b"PK\x03\x04" + bytes(50), "invalid_model", "truncated"),
    ],
)
def test_what_is_not_a_checkpoint_is_named(data, code, message, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=message) as caught:
        read_state_dict(path)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), "a single tensor"),
        ([torch.ones(3)], "a list"),
        ({}, "no tensors"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "no tensors.*epoch, args"),
        (
            {"generator": {"w": torch.ones(1)}, "critic": {"w": torch.ones(1)}},
            r"several sets of tensors \(generator, critic\)",
        ),
    ],
)
def test_checkpoints_without_one_state_dict_say_what_they_hold(value, message, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(value, path)
    with pytest.raises(EngineError, match=message) as caught:
        read_state_dict(path)
    assert caught.value.code == "invalid_model"
