"""Words on the command line become the API's JSON, or a message that says what would have been understood."""

import json
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pennyweight.arguments import AboutJob
from pennyweight.options import (
    OptionError,
    parse_budget,
    parse_cap,
    parse_convert,
    parse_encoding,
    parse_input_shape,
    parse_json_object,
    parse_method,
    parse_normalization,
    parse_recovery,
)


@pytest.mark.parametrize(
    ("metric", "text", "cap"),
    [
        ("flops", "40%", {"max_ratio": 0.4}),
        ("flops", "12.5 %", {"max_ratio": 0.125}),
        ("params", "100k", {"max": 100_000}),
        ("params", "1_000", {"max": 1000}),
        ("macs", "60M", {"max": 60_000_000}),
        ("flops", "1.5G", {"max": 1_500_000_000}),
        ("memory", "2MB", {"max": 2_000_000}),
        ("memory", "2MiB", {"max": 2_097_152}),
        ("params", "0.4k", {"max": 400}),
        ("size", "500kB", {"max": 500_000}),
        ("latency_ms", "0.4", {"max": 0.4}),
        ("latency_ms", "5ms", {"max": 5}),
        ("memory", "weights:1mb", {"kind": "weights", "max": 1_000_000}),
        ("memory", "activations: 50%", {"kind": "activations", "max_ratio": 0.5}),
    ],
)
def test_cap_is_read_as_a_person_means_it(metric, text, cap):
    assert parse_cap(metric, text) == cap


@pytest.mark.parametrize(
    ("metric", "text", "words"),
    [
        ("flops", "140%", "between 0% and 100%"),
        ("flops", "0%", "between 0% and 100%"),
        ("flops", "100%", "between 0% and 100%"),
        ("params", "lots", "100k or 40%"),
        ("params", "-5", "100k or 40%"),
        ("params", "0", "positive"),
        ("params", "5 parsecs", "unknown unit 'parsecs'"),
        ("params", "2MB", "unknown unit 'MB'"),
        ("memory", "cache:2MB", "weights, activations, total"),
        ("flops", "0.4", "write 40%"),
        ("params", ".125", "write 12.5%"),
        ("size", "0.5", "write 50%"),
        ("macs", "0.0004k", "below 1"),
        ("latency_ms", "5 s", "unknown unit 's'"),
    ],
)
def test_cap_that_cannot_be_read_is_refused_with_its_reason(metric, text, words):
    with pytest.raises(OptionError, match=words.replace("%", "%")) as refusal:
        parse_cap(metric, text)
    assert text in str(refusal.value)


@given(st.text(max_size=20))
def test_any_text_gives_a_positive_cap_or_an_option_error(text):
    try:
        cap = parse_cap("memory", text)
    except OptionError:
        return
    assert cap.get("max", 1) > 0
    assert 0 < cap.get("max_ratio", 0.5) < 1


def test_help_of_both_programs_offers_the_same_words_for_a_job():
    """One declaration each: what one program takes, the other takes."""
    from pennyweight.cli import compress

    from pennyweightd.compress import compress as compress_alone

    only_with_a_server = {"model", "url", "name", "clone", "wait", "output", "priority"}
    client, alone = (get_type_hints(command, include_extras=True) for command in (compress, compress_alone))
    shared = client.keys() - only_with_a_server - {"return"}
    assert shared == alone.keys() - {"model", "output", "return"}
    assert {name: client[name] for name in shared} == {name: alone[name] for name in shared}


@given(st.integers(1, 10**15), st.sampled_from([("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9)]))
def test_whole_caps_are_exact_integers(number, unit):
    assert parse_cap("flops", f"{number}{unit[0]}") == {"max": number * unit[1]}


def test_budget_leaves_out_what_was_not_given():
    assert parse_budget({"params": None, "flops": "40%", "memory": "1MB"}) == {
        "flops": {"max_ratio": 0.4},
        "memory": {"max": 1_000_000},
    }


@pytest.mark.parametrize("text", ["3x32x32", "3,32,32", "[3, 32, 32]"])
def test_input_shape_in_three_spellings(text):
    assert parse_input_shape(text) == [3, 32, 32]


@pytest.mark.parametrize(
    "text", ["template=3x128x128,search=3x8x9", '{"template": [3, 128, 128], "search": [3, 8, 9]}']
)
def test_input_shapes_by_name(text):
    assert parse_input_shape(text) == {"template": [3, 128, 128], "search": [3, 8, 9]}


@pytest.mark.parametrize("text", ["a=3x32x32,a=3x8x8", "=3x8x8", "a=3xb", '{"a": 3}', "{}"])
def test_input_shapes_by_name_are_checked(text):
    with pytest.raises(OptionError, match="--input-shape"):
        parse_input_shape(text)


@pytest.mark.parametrize("text", ["", "3x-1x2", "axb", "0x1x1"])
def test_input_shape_must_be_positive_numbers(text):
    with pytest.raises(OptionError, match="3x32x32"):
        parse_input_shape(text)


def test_normalization_by_words_by_json_and_by_file(tmp_path):
    statistics = {"mean": [0.5, 0.25], "std": [1.0, 2.0]}
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    assert parse_normalization("0.5,0.25/1,2") == statistics
    assert parse_normalization(json.dumps(statistics)) == statistics
    assert parse_normalization(str(tmp_path / "statistics.json")) == statistics
    with pytest.raises(OptionError, match="mean/std"):
        parse_normalization("0.5")


def test_conversions_by_words():
    assert parse_convert("224x192") == {"size": [224, 192]}
    assert parse_convert("grey") == {"color": "grey"}
    assert parse_convert("rgb, 32x32") == {"color": "rgb", "size": [32, 32]}


@pytest.mark.parametrize("text", ["", "224", "red", "rgb,grey", "8x8,9x9", "8x8x3", "rgb,"])
def test_other_conversions_are_told_what_there_is(text):
    with pytest.raises(OptionError, match="rgb,224x224"):
        parse_convert(text)


def test_method_with_options():
    assert parse_method("magnitude") == {"type": "magnitude"}
    assert parse_method("magnitude:round_to=8,p=1") == {"type": "magnitude", "round_to": 8, "p": 1}
    assert parse_method('{"type": "magnitude", "p": 2}') == {"type": "magnitude", "p": 2}
    with pytest.raises(OptionError, match="name=value"):
        parse_method("magnitude:8")


@pytest.mark.parametrize(
    ("parse", "text", "key"),
    [
        (parse_recovery, "epochs=0,epochs=3", "epochs"),
        (parse_method, "magnitude:p=1, p=2", "p"),
        (parse_method, "magnitude:type=penni", "type"),
        (parse_encoding, "ecsq:quantizer=uq", "quantizer"),
    ],
)
def test_what_is_said_twice_is_refused(parse, text, key):
    with pytest.raises(OptionError, match=f"{key} is given twice"):
        parse(text)


@pytest.mark.parametrize("options", [{"max_drop": float("nan")}, {"recovery": "mixup=1e999"}, {"method": ["m:p=NaN"]}])
def test_what_is_no_number_is_refused(options):
    with pytest.raises(OptionError, match="nan or inf"):
        AboutJob(**options).fields()


def test_json_option_must_be_an_object():
    with pytest.raises(OptionError, match="not a list"):
        parse_json_object("--architecture-args", "[1]")
    with pytest.raises(OptionError, match="JSON object"):
        parse_json_object("--architecture-args", "{depth: 20}")


def test_training_options_are_pairs_or_json():
    assert parse_recovery("epochs=3,optimizer=adamw,mixup=0.2,distill=false") == {
        "epochs": 3,
        "optimizer": "adamw",
        "mixup": 0.2,
        "distill": False,
    }
    assert parse_recovery('{"epochs": 3}') == {"epochs": 3}
    with pytest.raises(OptionError, match=r"--recovery adamw: write options as name=value, for example epochs=10"):
        parse_recovery("adamw")


def test_encoding_words():
    assert parse_encoding("ecsq") == {"quantizer": "ecsq"}
    assert parse_encoding("cws:levels=16,prune=62.5,unified=true,format=shac") == {
        "quantizer": "cws",
        "levels": 16,
        "prune": 62.5,
        "unified": True,
        "format": "shac",
    }
    assert parse_encoding('{"quantizer": "uq", "bits": 3}') == {"quantizer": "uq", "bits": 3}
    with pytest.raises(OptionError, match="--encoding ecsq:16: write options as name=value"):
        parse_encoding("ecsq:16")
