"""Whatever a pickle asks to be run is refused by name, and nothing runs."""

import collections
import io
import os
import pathlib
import pickle
import pickletools
import sys
import zipfile

import pytest
import torch

from core.errors import EngineError
from core.intake import load_network, read_state_dict


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TouchByState:
    """Asks for a forbidden class before anything else."""

    def __reduce__(self):
        return pathlib.Path, ("/",), {"x": 1}


class Net(torch.nn.Module):
    """A whole module, saved as people should not."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "it_ran"


def weights():
    return {"w": torch.ones(2), "b": torch.zeros(3)}


def saved(value, container, protocol=2):
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


def replaced(archive, entry, data):
    """A zip checkpoint with one entry's content replaced, stored as torch.save stores it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, data if info.filename.endswith(entry) else source.read(info))
    return buffer.getvalue()


def pickles_of(stream):
    """The five pickles of the stream form, and what follows."""
    file, parts = io.BytesIO(stream), []
    for _ in range(5):
        start = file.tell()
        for _ in pickletools.genops(file):
            pass
        parts.append(stream[start : file.tell()])
    return parts, stream[file.tell() :]


def refused(data, tmp_path, trap, *mentions):
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    for read in (read_state_dict, lambda path: load_network(path, architecture="cifar_resnet20")):
        with pytest.raises(EngineError) as caught:
            read(path)
        error = caught.value
        assert error.code == "unsafe_model"
        assert "Nothing in the file was run" in error.message and "save_file(model.state_dict()" in error.message
        for mention in mentions:
            assert mention in error.message
        assert not trap.exists()
    return error


def test_the_trap_works_where_pickle_is_used(trap):
    pickle.loads(pickle.dumps(Touch(trap)))
    assert trap.exists()


@pytest.mark.parametrize("container", ["zip", "stream"])
def test_no_python_pickle_machine_is_used_even_for_an_honest_file(container, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(saved(weights(), container))
    heard, listening = [], [True]
    sys.addaudithook(lambda event, arguments: listening[0] and event == "pickle.find_class" and heard.append(arguments))
    assert set(read_state_dict(path).tensors) == {"w", "b"}
    assert heard == []
    torch.load(path, weights_only=False)
    listening[0] = False
    assert heard


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", ["zip", "stream"])
@pytest.mark.parametrize(
    "hide",
    [
        lambda bomb: bomb,
        lambda bomb: {**weights(), "z": bomb},
        lambda bomb: {"state_dict": weights(), "args": {"deep": [(bomb,)]}},
        lambda bomb: collections.OrderedDict([(1, bomb)]),
    ],
)
def test_code_in_the_object_is_refused(container, protocol, hide, tmp_path, trap):
    error = refused(saved(hide(Touch(trap)), container, protocol), tmp_path, trap, "mkdir")
    assert error.details["global"] in ("posix.mkdir", "nt.mkdir")


@pytest.mark.parametrize("container", ["zip", "stream"])
def test_code_in_the_attributes_of_a_state_dict_is_refused(container, tmp_path, trap):
    state = collections.OrderedDict(weights())
    state._metadata = {"": Touch(trap)}
    refused(saved(state, container), tmp_path, trap, "posix.mkdir")


@pytest.mark.parametrize("place", range(5))
def test_code_in_any_pickle_of_the_stream_form_is_refused(place, tmp_path, trap):
    parts, storages = pickles_of(saved(weights(), "stream"))
    parts[place] = pickle.dumps(Touch(trap), protocol=2)
    refused(b"".join(parts) + storages, tmp_path, trap, "posix.mkdir")


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_with_code_is_refused(protocol, tmp_path, trap):
    refused(pickle.dumps(Touch(trap), protocol=protocol), tmp_path, trap, "posix.mkdir")


def handmade(trap):
    """Every operation of the pickle machine that imports or calls, by name of the operation that refuses it."""
    argument = f"X{chr(len(str(trap)))}\0\0\0{trap}".encode()
    text = str(trap).encode()
    return {
        "GLOBAL REDUCE": (b"\x80\x02cposix\nmkdir\n" + argument + b"\x85R.", "posix.mkdir"),
        "STACK_GLOBAL": (b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93" + argument + b"\x85R.", "posix.mkdir"),
        "INST": (b"\x80\x02(" + argument + b"iposix\nmkdir\n.", "posix mkdir"),
        "OBJ": (b"\x80\x02(cposix\nmkdir\n" + argument + b"o.", "posix.mkdir"),
        "OBJ of a known name": (b"\x80\x02(ccollections\nOrderedDict\n" + argument + b"o.", "OBJ"),
        "NEWOBJ": (b"\x80\x02cpathlib\nPath\n" + argument + b"\x85\x81.", "pathlib.Path"),
        "NEWOBJ_EX": (b"\x80\x04\x8c\x07pathlib\x8c\x04Path\x93)}\x92.", "pathlib.Path"),
        "EXT1": (b"\x80\x02\x82\x01" + argument + b"\x85R.", "EXT1"),
        "EXT4": (b"\x80\x02\x84\x01\0\0\0.", "EXT4"),
        "PERSID": (b"\x80\x02P" + text + b"\n.", "PERSID"),
        "POP": (b"\x80\x02]0cposix\nmkdir\n.", "POP"),
        "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "a builtin": (b"\x80\x02c__builtin__\neval\n" + argument + b"\x85R.", "__builtin__.eval"),
        "a dotted name": (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "OrderedDict.__init__"),
        "a module of torch": (b"\x80\x02ctorch\nload\n" + argument + b"\x85R.", "torch.load"),
        "torch.storage._load_from_bytes": (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
        "a sparse tensor": (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n.", "_rebuild_sparse_tensor"),
    }


@pytest.mark.parametrize("name", handmade("x"))
@pytest.mark.parametrize("container", ["zip", "stream", "plain"])
def test_every_operation_that_imports_or_calls_is_refused(container, name, tmp_path, trap):
    program, mention = handmade(trap)[name]
    if container == "zip":
        data = replaced(saved(weights(), "zip"), "data.pkl", program)
    elif container == "stream":
        parts, storages = pickles_of(saved(weights(), "stream"))
        data = b"".join([*parts[:3], program, parts[4]]) + storages
    else:
        data = program
    refused(data, tmp_path, trap, mention)


@pytest.mark.parametrize("container", ["zip", "stream"])
def test_a_whole_pickled_module_is_refused_as_one(container, tmp_path, trap):
    message = refused(saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), container), tmp_path, trap).message
    assert "whole pickled module" in message and "torch.nn" in message


@pytest.mark.parametrize("container", ["zip", "stream"])
def test_other_objects_are_refused_by_the_name_of_their_class(container, tmp_path, trap):
    refused(saved({"state_dict": weights(), "where": TouchByState()}, container), tmp_path, trap, "pathlib.Path")


def test_calling_what_is_no_constructor_is_refused(tmp_path):
    for program in (b"\x80\x02ctorch\nFloatStorage\n)R.", b"\x80\x02K\x01)R.", b"\x80\x02ctorch\nfloat32\n)R."):
        path = tmp_path / "model.pt"
        path.write_bytes(replaced(saved(weights(), "zip"), "data.pkl", program))
        with pytest.raises(EngineError, match="cannot be called") as caught:
            read_state_dict(path)
        assert caught.value.code == "invalid_model"


def test_attributes_can_only_be_set_on_an_ordered_dictionary(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(replaced(saved(weights(), "zip"), "data.pkl", b"\x80\x02ccollections\nOrderedDict\n}b."))
    with pytest.raises(EngineError, match="attributes cannot be set"):
        read_state_dict(path)
