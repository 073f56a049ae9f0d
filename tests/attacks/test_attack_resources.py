"""Small files that promise a lot are refused by what they promise, before memory or time is spent."""

import collections
import io
import struct
import tracemalloc
import zipfile

import pytest
import torch

from core.errors import EngineError
from core.intake import machine, read_state_dict, zip_file


def saved(value, container="zip"):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


def number(value):
    return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(values):
    return b"(" + b"".join(number(value) for value in values) + b"t"


def view(offset, shape, strides, count=4):
    """Pickle code of a float tensor on storage "0" of `count` elements."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    arguments = b"(" + storage + number(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor\n" + arguments + b"tR"


def zip_of(program, storage=bytes(16), **more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", program)
        for name, data in {"data/0": storage, "version": b"3\n", **more}.items():
            archive.writestr(f"m/{name}", data)
    return buffer.getvalue()


def state_of(**tensors):
    return b"\x80\x02}(" + b"".join(text(name) + code for name, code in tensors.items()) + b"u."


def refusal(data, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    with pytest.raises(EngineError) as caught:
        read_state_dict(path)
    return caught.value


def test_the_handmade_tensor_is_read_when_it_is_honest(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(zip_of(state_of(w=view(1, (3,), (1,))), struct.pack("<4f", 1, 2, 3, 4)))
    assert read_state_dict(path).tensors["w"].tolist() == [2, 3, 4]


def test_a_stride_bomb_written_by_torch_itself_is_refused(tmp_path):
    bomb = torch.zeros(1).as_strided((200_000, 200_000), (0, 0))
    for container in ("zip", "stream"):
        data = saved({"w": bomb}, container)
        assert len(data) < 2000
        error = refusal(data, tmp_path)
        assert error.code == "unsafe_model" and "claims 160000000000 bytes" in error.message


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ((0, (5,), (1,)), "claims 20 bytes of a storage of 16"),
        ((0, (2, 2, 2), (0, 0, 0)), "claims 32 bytes"),
        ((2, (3,), (1,)), "reaches outside"),
        ((0, (2,), (4,)), "reaches outside"),
        ((0, (2,), (2**62,)), "reaches outside"),
        ((4, (1,), (1,)), "reaches outside"),
        ((2**62, (1,), (1,)), "reaches outside"),
        ((-1, (2,), (1,)), "negative"),
        ((3, (3,), (-1,)), "negative"),
        ((0, (-2,), (1,)), "negative"),
        ((0, (2**62,), (0,)), "larger than any storage"),
        ((0, (0, 2**62), (1, 1)), "larger than any storage"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(geometry, message, tmp_path):
    error = refusal(zip_of(state_of(w=view(*geometry))), tmp_path)
    assert error.code == "unsafe_model" and message in error.message


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (view(0, (1,), (1, 1)), "1 sizes and 2 strides"),
        (view(0, (1,) * 20, (1,) * 20), "20 sizes"),
        (view(0, (1,), (1,), count=-4), "number of elements"),
        (view(0, (1,), (1,), count=3), "its tensors expect 12"),
        (b"ctorch._utils\n_rebuild_tensor\n(K\x00K\x00))tR", "needs a storage"),
        (b"ctorch._utils\n_rebuild_tensor\n)R", "cannot take 0"),
        (b"(" + text("module") + b"NNNtQ", "'module'"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(program, message, tmp_path):
    error = refusal(zip_of(state_of(w=program)), tmp_path)
    assert error.code == "invalid_model" and message in error.message


def test_many_overlapping_views_are_refused(tmp_path):
    storage = bytes(40_000)
    views = {f"w{index}": view(index, (9_000,), (1,), count=10_000) for index in range(200)}
    tracemalloc.start()
    error = refusal(zip_of(state_of(**views), storage), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "unsafe_model" and "overlap" in error.message
    assert peak < 2_000_000


def test_two_descriptions_of_one_storage_must_agree(tmp_path):
    error = refusal(zip_of(state_of(a=view(0, (4,), (1,)), b=view(0, (4,), (1,), count=400))), tmp_path)
    assert error.code == "invalid_model" and "two ways" in error.message


def test_a_missing_storage_is_named(tmp_path):
    path = zip_of(state_of(w=view(0, (4,), (1,)))).replace(b"m/data/0", b"m/data/1")
    error = refusal(path, tmp_path)
    assert error.code == "invalid_model" and "data/0" in error.message


def test_a_memo_that_doubles_itself_costs_nothing(tmp_path):
    """Two hundred lists, each of which holds the one before it twice: 2^200 leaves if anything walked them."""
    bomb = b"](" * 200 + b"]q\x00" + b"".join(b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(200))
    weights = b"}" + text("w") + view(0, (4,), (1,)) + b"s"
    path = tmp_path / "model.pth"
    path.write_bytes(zip_of(b"\x80\x02}(" + text("bomb") + bomb + text("state_dict") + weights + b"u."))
    assert list(read_state_dict(path).tensors) == ["w"]


def test_a_container_that_contains_itself_ends(tmp_path):
    error = refusal(zip_of(b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s."), tmp_path)
    assert error.code == "invalid_model" and "wrapped more than" in error.message


def test_a_million_nested_tuples_neither_recurse_nor_crash(tmp_path):
    error = refusal(zip_of(b"\x80\x02)" + b"\x85" * 1_000_000 + b"."), tmp_path)
    assert error.code == "invalid_model" and "a tuple" in error.message


def test_deep_marks_are_refused(tmp_path):
    error = refusal(zip_of(b"\x80\x02" + b"(" * 1000), tmp_path)
    assert error.code == "unsafe_model" and "256 levels" in error.message


def test_endless_operations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MAX_OPERATIONS", 10_000)
    error = refusal(zip_of(b"\x80\x02(" + b"]" * 10_000 + b"l."), tmp_path)
    assert error.code == "too_large" and "10000 operations" in error.message


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04B\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02U\xff.",
        b"\x80\x02c" + b"a" * 100_000,
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    ],
)
def test_a_length_beyond_the_file_takes_no_memory(program, tmp_path):
    tracemalloc.start()
    error = refusal(zip_of(program), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code in ("invalid_model", "unsafe_model") and peak < 4_000_000


def test_a_string_larger_than_any_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MAX_PICKLE_BYTES", 100_000)
    error = refusal(zip_of(b"\x80\x02" + text("x" * 200_000) + b"."), tmp_path)
    assert error.code == "too_large"


@pytest.mark.parametrize("key", [b"(K\x01K\x02t", b"]", b"}", number(2**66)])
def test_keys_that_could_be_made_to_collide_are_refused(key, tmp_path):
    for program in (b"\x80\x02}" + key + b"K\x01s.", b"\x80\x04\x8f(" + key + b"\x90."):
        error = refusal(zip_of(program), tmp_path)
        assert error.code == "invalid_model" and "not a scalar" in error.message


def test_a_compressed_checkpoint_is_refused(tmp_path):
    buffer = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(4_000_000)})))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert len(buffer.getvalue()) < 100_000
    error = refusal(buffer.getvalue(), tmp_path)
    assert error.code == "unsafe_model" and "not compressed" in error.message


def test_one_compressed_entry_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr("m/data.pkl", state_of(w=view(0, (4,), (1,))), zipfile.ZIP_DEFLATED)
        target.writestr("m/data/0", bytes(16))
    error = refusal(buffer.getvalue(), tmp_path)
    assert error.code == "unsafe_model" and "'m/data.pkl' is compressed" in error.message


def directory_entry(data, name):
    """Offset of an entry of the zip's directory."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(name))


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    honest = zip_of(b"\x80\x02}.", bytes(16), **{"data/1": bytes(16)})
    data = bytearray(honest)
    first, second = directory_entry(data, b"m/data/0"), directory_entry(data, b"m/data/1")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    error = refusal(bytes(data), tmp_path)
    assert error.code == "unsafe_model" and "differs from the zip's directory" in error.message
    data = bytearray(honest)
    data[first + 20 : first + 28] = struct.pack("<II", 100, 100)
    error = refusal(bytes(data), tmp_path)
    assert error.code == "unsafe_model" and "overlap" in error.message


@pytest.mark.parametrize(("offset", "value"), [(8, b"\x01\x00"), (10, b"\x08\x00")])
def test_an_entry_that_is_something_else_in_its_own_header_is_refused(offset, value, tmp_path):
    data = bytearray(zip_of(state_of(w=view(0, (4,), (1,)))))
    local = data.index(b"PK\x03\x04", 1)
    data[local + offset - 2 : local + offset] = value
    error = refusal(bytes(data), tmp_path)
    assert error.code == "unsafe_model" and "differs" in error.message


def test_two_entries_of_one_name_are_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr("m/data.pkl", b"\x80\x02}.")
        target.writestr("m/data.pkl", state_of(w=view(0, (4,), (1,))))
    error = refusal(buffer.getvalue(), tmp_path)
    assert error.code == "unsafe_model" and "two entries" in error.message


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    more = {f"extra/{index}": b"" for index in range(zip_file.MAX_ENTRIES)}
    error = refusal(zip_of(b"\x80\x02}.", **more), tmp_path)
    assert error.code == "too_large" and "at most 4096" in error.message
    monkeypatch.setattr(zip_file, "MAX_DIRECTORY_BYTES", 100_000)
    error = refusal(zip_of(b"\x80\x02}.", **more), tmp_path)
    assert error.code == "too_large" and "directory" in error.message


@pytest.mark.parametrize("field", ["keys", "count", "tail", "endian"])
def test_a_stream_whose_parts_disagree_is_refused(field, tmp_path):
    data = saved(collections.OrderedDict(w=torch.ones(4)), "stream")
    storage = struct.pack("<q", 4) + torch.ones(4).numpy().tobytes()
    assert data.endswith(storage)
    if field == "keys":
        data, message = data[: -len(storage)].removesuffix(b".") + b"(" + text("extra") + b"e." + storage, "2 storages"
    elif field == "count":
        data, message = data[: -len(storage)] + struct.pack("<q", -1) + storage[8:], "-1 elements"
    elif field == "tail":
        data, message = data + b"more", "4 bytes after"
    else:
        flag = data.index(b"little_endian") + len(b"little_endianq?")
        data, message = data[:flag] + b"\x89" + data[flag + 1 :], "little-endian"
    assert message in refusal(data, tmp_path).message
