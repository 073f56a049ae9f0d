"""Exported programs (.pt2) that would run code, read files or take memory are refused; nothing in them is run."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import tracemalloc
import zipfile

import pytest
import torch
from torch import nn

from core.errors import EngineError
from core.intake import load_network
from core.intake.pt2 import fields

MODEL = "m/models/m.json"
WEIGHTS = "m/data/weights/m_weights_config.json"


@pytest.fixture(scope="module")
def entries() -> dict[str, bytes]:
    """The members of an honest archive."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        found = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    return {f"m/{name.replace('models/model.', 'models/m.').replace('/model_', '/m_')}": found[name] for name in found}


def zip_of(entries, compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def read(data: bytes, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(data)
    return load_network(path, architecture=None)


def refusal(entries, tmp_path, **options) -> EngineError:
    with pytest.raises(EngineError) as caught:
        read(zip_of(entries, **options), tmp_path)
    return caught.value


def edited(entries, change, name=MODEL):
    """The archive with one of its JSON documents changed in place."""
    document = json.loads(entries[name])
    change(document)
    return {**entries, name: json.dumps(document).encode()}


def graph_of(document):
    return document["graph_module"]["graph"]


def test_the_honest_archive_is_read(entries, tmp_path):
    assert read(zip_of(entries), tmp_path).inputs[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.prim.Print.default",
        "torch.ops.aten.save.default",
        "torch.ops.mylib.launch.default",
        "torch.ops.aten.relu.out",
        "torch.ops.aten.relu.__class__",
        "torch.ops.aten.mul.left_t",
        "torch.ops.aten.split.str",
        "torch.ops.aten.__class__.default",
        "torch.ops.higher_order.cond",
        "os.system",
        "builtins.eval",
        "_operator.attrgetter",
        "_operator.getitem",
        "math.__loader__",
        "torch.load",
    ],
)
def test_what_is_no_known_operator_is_never_looked_up(target, entries, tmp_path):
    def change(document):
        graph_of(document)["nodes"][1]["target"] = target

    error = refusal(edited(entries, change), tmp_path)
    assert error.code == "unsupported_format" and target in error.message


def test_all_unknown_operators_are_named_at_once(entries, tmp_path):
    def change(document):
        for index, node in enumerate(graph_of(document)["nodes"]):
            node["target"] = f"torch.ops.custom.op_{index % 3}.default"

    error = refusal(edited(entries, change), tmp_path)
    assert all(f"custom.op_{index}" in error.message for index in range(3))


def test_expressions_of_sizes_are_never_evaluated(entries, tmp_path):
    canary = tmp_path / "ran"

    def change(document):
        code = f"__import__('os').system('touch {canary}')"
        text = json.dumps(document).replace("Symbol('s77', positive=True, integer=True)", "PLACE")
        document.clear()
        document.update(json.loads(text))
        for values in graph_of(document)["tensor_values"].values():
            for size in values["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code

    network = read(zip_of(edited(entries, change)), tmp_path)
    assert network.outputs[0].shape == (2,) and not canary.exists()


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickled_weights_and_objects_are_refused_by_name_and_not_read(entries, tmp_path):
    canary = tmp_path / "ran"
    for name, config in ((WEIGHTS, "0.weight"), ("m/data/constants/m_constants_config.json", "tokenizer")):

        def change(document, config=config):
            document["config"].setdefault(config, {"path_name": "custom_obj_0", "is_param": False, "tensor_meta": None})
            document["config"][config]["use_pickle"] = True

        evil = {**edited(entries, change, name), "m/data/constants/custom_obj_0": pickle.dumps(Runs(canary))}
        evil["m/data/sample_inputs/m.pt"] = pickle.dumps(Runs(canary))
        error = refusal(evil, tmp_path)
        assert error.code == "unsafe_model" and repr(config) in error.message and not canary.exists()


def test_sample_inputs_are_never_opened(entries, tmp_path):
    canary = tmp_path / "ran"
    evil = {**entries, "m/data/sample_inputs/m.pt": pickle.dumps(Runs(canary))}
    assert read(zip_of(evil), tmp_path).outputs and not canary.exists()


def old_archive(entries, state) -> dict[str, bytes]:
    """The layout of PyTorch 2.6: the program beside what torch.save wrote."""
    buffer, nothing = io.BytesIO(), io.BytesIO()
    torch.save(state, buffer)
    torch.save({}, nothing)
    return {
        "serialized_exported_program.json": entries[MODEL],
        "serialized_state_dict.pt": buffer.getvalue(),
        "serialized_constants.pt": nothing.getvalue(),
        "serialized_example_inputs.pt": b"never read",
        "version": b"8.2",
    }


def honest_state(entries):
    sizes = {"0.weight": (4, 3, 3, 3), "0.bias": (4,), "4.weight": (2, 4), "4.bias": (2,)}
    return {name: nn.Parameter(torch.ones(size)) for name, size in sizes.items()}


def test_the_older_layouts_are_read_by_the_interpreter_that_runs_nothing(entries, tmp_path):
    state = honest_state(entries)
    network = read(zip_of(old_archive(entries, state)), tmp_path)
    assert torch.equal(network.tensors["4.weight"], torch.ones(2, 4)) and len(network.parameter_names) == 4
    between = {name: data for name, data in entries.items() if "/data/weights/" not in name}
    between["m/data/weights/m.pt"] = old_archive(entries, state)["serialized_state_dict.pt"]
    assert torch.equal(read(zip_of(between), tmp_path).tensors["0.bias"], torch.ones(4))


def test_an_older_state_that_would_run_code_is_refused(entries, tmp_path):
    canary = tmp_path / "ran"
    error = refusal(old_archive(entries, {**honest_state(entries), "x": Runs(canary)}), tmp_path)
    assert error.code == "unsafe_model" and not canary.exists()


def test_compiled_programs_and_several_programs_are_refused(entries, tmp_path):
    error = refusal({**entries, "m/data/aotinductor/m/model.so": b"\x7fELF"}, tmp_path)
    assert error.code == "unsupported_format" and "AOTInductor" in error.message
    error = refusal({**entries, "m/models/other.json": entries[MODEL]}, tmp_path)
    assert error.code == "unsupported_format" and "2 programs" in error.message


def test_compressed_members_are_refused_before_they_are_unpacked(entries, tmp_path):
    bomb = {**entries, "m/models/m.json": b" " * (64 << 20)}
    tracemalloc.start()
    error = refusal(bomb, tmp_path, compression=zipfile.ZIP_DEFLATED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "unsafe_model" and peak < 200 << 20


def test_documents_that_are_too_large_or_too_deep_are_refused(entries, tmp_path, monkeypatch):
    deep = {**entries, MODEL: b"[" * 200_000}
    assert refusal(deep, tmp_path).code == "invalid_model"
    monkeypatch.setattr(fields, "MAX_JSON_BYTES", 1000)
    assert refusal(entries, tmp_path).code == "too_large"


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({"sizes": [{"as_int": 200_000}] * 2, "strides": [{"as_int": 0}] * 2}, "unsafe_model"),
        ({"sizes": [{"as_int": 2**62}], "strides": [{"as_int": 1}]}, "unsafe_model"),
        ({"sizes": [{"as_int": -1}], "strides": [{"as_int": 1}]}, "unsafe_model"),
        ({"storage_offset": {"as_int": 10**6}}, "unsafe_model"),
        ({"storage_offset": {"as_int": 10**30}}, "invalid_model"),
        ({"sizes": [{"as_expr": {"expr_str": "1"}}]}, "invalid_model"),
        ({"dtype": 99}, "unsupported_format"),
        ({"layout": 2}, "unsupported_format"),
        ({"sizes": "many"}, "invalid_model"),
    ],
)
def test_descriptions_of_tensors_that_lie_are_refused(meta, code, entries, tmp_path):
    def change(document):
        document["config"]["0.weight"]["tensor_meta"].update(meta)

    assert refusal(edited(entries, change, WEIGHTS), tmp_path).code == code


def test_a_member_outside_the_folder_of_weights_is_not_found(entries, tmp_path):
    def change(document):
        document["config"]["0.weight"]["path_name"] = "../../../../etc/passwd"

    error = refusal(edited(entries, change, WEIGHTS), tmp_path)
    assert error.code == "invalid_model" and "does not have" in error.message


def test_a_call_that_would_make_a_huge_tensor_is_refused_by_its_shape(entries, tmp_path):
    def change(document):
        graph = graph_of(document)
        last = graph["nodes"][-1]["outputs"][0]["as_tensor"]["name"]
        arguments = [
            {"name": "self", "arg": {"as_tensor": {"name": last}}, "kind": 1},
            {"name": "repeats", "arg": {"as_ints": [1, 2**40]}, "kind": 1},
        ]
        graph["nodes"].append(
            {
                "target": "torch.ops.aten.repeat.default",
                "inputs": arguments,
                "outputs": [{"as_tensor": {"name": "huge"}}],
                "metadata": {},
            }
        )

    tracemalloc.start()
    error = refusal(edited(entries, change), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code in ("unsafe_model", "invalid_model") and peak < 50 << 20


def argument(name, **value):
    return {"name": name, "arg": value, "kind": 1}


def value(kind, name):
    return {f"as_{kind}": {"name" if kind == "tensor" else "as_name": name}}


def call(target, *inputs, output=None):
    outputs = [output or value("sym_int", "made")]
    return {"target": target, "inputs": list(inputs), "outputs": outputs, "metadata": {}}


def input_name(document):
    (spec,) = (one for one in document["graph_module"]["signature"]["input_specs"] if "user_input" in one)
    return spec["user_input"]["arg"]["as_tensor"]["name"]


@pytest.mark.parametrize(
    ("operation", "first", "second"),
    [
        ("mul", {"as_string": "x"}, {"as_int": 2**33}),
        ("mul", {"as_ints": [1]}, {"as_int": 2**33}),
        ("mod", {"as_string": "%9999999999d"}, {"as_int": 5}),
        ("mul", {"as_int": 2**62}, {"as_int": 2**62}),
        ("add", value("tensor", "INPUT"), value("tensor", "INPUT")),
        ("eq", value("tensor", "INPUT"), {"as_int": 1}),
    ],
)
def test_arithmetic_is_of_sizes_alone(operation, first, second, entries, tmp_path):
    def change(document):
        node = call(f"_operator.{operation}", argument("a", **first), argument("b", **second))
        node = json.loads(json.dumps(node).replace("INPUT", input_name(document)))
        graph_of(document)["nodes"].append(node)

    tracemalloc.start()
    error = refusal(edited(entries, change), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "invalid_model" and "is no size" in error.message and peak < 50 << 20


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        ("unbind.int", {"dim": 0}),
        ("split.Tensor", {"split_size": 1}),
        ("chunk.default", {"chunks": 10**6}),
        ("tensor_split.sections", {"sections": 10**9}),
    ],
)
def test_a_tensor_is_not_taken_into_more_pieces_than_are_named(target, inputs, entries, tmp_path):
    def change(document):
        nodes = graph_of(document)["nodes"]
        rows = [argument("self", **nodes[-1]["outputs"][0]), argument("repeats", as_ints=[10**6, 1])]
        nodes.append(call("torch.ops.aten.repeat.default", *rows, output=value("tensor", "rows")))
        given = [argument(name, as_int=number) for name, number in inputs.items()]
        pieces = {"as_tensors": [{"name": "piece"}]}
        rows = argument("self", **value("tensor", "rows"))
        nodes.append(call(f"torch.ops.aten.{target}", rows, *given, output=pieces))

    tracemalloc.start()
    error = refusal(edited(entries, change), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "invalid_model" and "1 results" in error.message and peak < 50 << 20


def test_two_inputs_of_one_name_are_refused(entries, tmp_path):
    def change(document):
        specs = document["graph_module"]["signature"]["input_specs"]
        specs.append(specs[-1])

    error = refusal(edited(entries, change), tmp_path)
    assert error.code == "invalid_model" and "one name" in error.message


def test_a_training_program_is_refused_with_what_to_do(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(EngineError, match=r"model\.eval\(\)") as caught:
        load_network(tmp_path / "model.pt2", architecture=None)
    assert caught.value.code == "invalid_model"


def test_damaged_documents_are_refused_and_never_crash(entries, tmp_path):
    """Every edit of the program's JSON gives a network or a refusal, whatever value it puts where."""
    generator = random.Random(0)
    values = [None, True, -1, 2**63, 10**30, 1.5, "", "x" * 300, [], {}, [[]], {"as_int": 3}, {"name": "x"}, "Infinity"]
    document = json.loads(entries[MODEL])
    places = []

    def collect(value, path):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            places.append((*path, key))
            collect(inner, (*path, key))

    collect(document, ())
    for path in generator.sample(places, 250):
        changed = copy.deepcopy(document)
        owner = changed
        for key in path[:-1]:
            owner = owner[key]
        if isinstance(owner, dict) and generator.random() < 0.3:
            del owner[path[-1]]
        else:
            owner[path[-1]] = generator.choice(values)
        try:
            read(zip_of({**entries, MODEL: json.dumps(changed).encode()}), tmp_path)
        except EngineError as error:
            assert error.code in ("invalid_model", "unsafe_model", "unsupported_format", "shape_mismatch"), path
