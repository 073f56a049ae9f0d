"""`.pwt` files that must be refused, each with its code, by both readers; and thousands of damaged ones."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pennyweight import pwt

from benchmarks import fuzz_pwt
from core.encoding import fast
from core.encoding.ans_decoder import CONTEXTS
from core.encoding.container import read_pwt, write_pwt
from core.encoding.errors import PwtError, PwtFault
from core.encoding.header import MAGIC, MAX_HEADER_BYTES, PRELUDE
from core.encoding.quantized import QuantizedTensor

CODEBOOK = np.array([0, 1, 2, 3], np.float32)
INDICES = np.array([[0, 1, 2, 3, 0], [0, 0, 3, 1, 1], [2, 0, 0, 0, 0]])


def whole_file(tmp_path: Path, format: str = "im") -> bytes:
    path = tmp_path / "whole.pwt"
    write_pwt(path, {"w": QuantizedTensor(INDICES, CODEBOOK, 0), "b": np.ones(3, np.float32)}, {}, format)
    return path.read_bytes()


def edited(tmp_path: Path, change: Callable[[dict[str, Any]], None], format: str = "im") -> bytes:
    """A whole file with its header changed and sealed again, and its payloads as they were."""
    document, payloads = fuzz_pwt.parted(whole_file(tmp_path, format))
    change(document)
    return sealed(json.dumps(document).encode(), payloads)


def sealed(header: bytes, payloads: list[bytes], size: int | None = None) -> bytes:
    packed = zlib.compress(header)
    size = len(header) if size is None else size
    file = PRELUDE.pack(MAGIC, 1, len(packed), size, zlib.crc32(packed)) + packed
    for payload in payloads:
        file += bytes(-len(file) % 8) + payload
    return file


def with_body(tmp_path: Path, format: str, change: Callable[[bytearray], Any]) -> bytes:
    """A whole file with the body of its coded tensor changed, lengths and checksums made right."""
    document, payloads = fuzz_pwt.parted(whole_file(tmp_path, format))
    body = bytearray(payloads[0][16:])
    change(body)
    payloads[0] = payloads[0][:16] + bytes(body)
    return fuzz_pwt.joined(document, payloads)


def with_contexts(tmp_path: Path, change: Callable[[bytearray], Any]) -> bytes:
    """A file of one tensor that is coded with contexts, its body changed."""
    path = tmp_path / "contexts.pwt"
    write_pwt(path, {"w": fuzz_pwt.scaled()}, {}, "ans")
    document, payloads = fuzz_pwt.parted(path.read_bytes())
    begin = 4 * document["tensors"][0]["levels"]
    body = bytearray(payloads[0][begin:])
    assert body[0] == CONTEXTS and path.read_bytes()[8] == 2
    change(body)
    return fuzz_pwt.joined(document, [payloads[0][:begin] + bytes(body)])


def hour_of_symbols(tmp_path: Path) -> bytes:
    """A billion entries in one lane and a few bytes, each of 2^-15 of a bit or less."""
    document, payloads = fuzz_pwt.parted(whole_file(tmp_path, "ans"))
    document["tensors"][0] |= {"shape": [1, 1 << 27], "levels": 2}
    # Direct, one lane, precision 15 and order 14, one column a block; the frequencies 2^15 − 1 and 1.
    codes = f"{(1 << 15) - 1 + (1 << 14):017b}".rjust(18, "0")[1:] + f"{1 + (1 << 14):015b}"
    codes = "0" + codes.ljust(-(-(len(codes) + 1) // 8) * 8 - 1, "0")
    tables = int(codes, 2).to_bytes(len(codes) // 8, "big")
    body = bytes([0, 0, 15, 14, 1]) + tables + bytes([4]) + (1 << 16).to_bytes(4, "little")
    payloads[0] = payloads[0][:8] + body
    return fuzz_pwt.joined(document, payloads)


def with_codebook(tmp_path: Path, *values: float) -> bytes:
    document, payloads = fuzz_pwt.parted(whole_file(tmp_path))
    payloads[0] = np.array(values, "<f4").tobytes() + payloads[0][16:]
    return fuzz_pwt.joined(document, payloads)


def at(index: int, value: int) -> Callable[[bytearray], None]:
    return lambda body: body.__setitem__(index, value)


def field(tensor: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["tensors"][tensor].update(values)


def padding_filled(content: bytes) -> bytes:
    begin = PRELUDE.size + PRELUDE.unpack(content[: PRELUDE.size])[2]
    assert begin % 8
    return content[:begin] + b"\1" + content[begin + 1 :]


# Lengths of codewords of the four levels are the first four bytes of a Huffman body; an `ans` body begins with its mode, its
# lanes, its precision and its order.
ATTACKS: dict[str, tuple[PwtFault, Callable[[Path], bytes]]] = {
    "nothing": (PwtFault.not_pwt, lambda _: b""),
    "a zip file": (PwtFault.not_pwt, lambda _: b"PK\3\4" + bytes(60)),
    "line ends rewritten": (PwtFault.not_pwt, lambda t: whole_file(t).replace(b"\r\n", b"\n", 1)),
    "the magic alone": (PwtFault.truncated, lambda _: MAGIC),
    "a later version": (PwtFault.unsupported_version, lambda t: MAGIC + b"\3" + whole_file(t)[9:]),
    "the header cut off": (PwtFault.truncated, lambda t: whole_file(t)[: PRELUDE.size + 9]),
    "the last payload cut off": (PwtFault.truncated, lambda t: whole_file(t)[:-1]),
    "a byte more": (PwtFault.trailing_bytes, lambda t: whole_file(t) + b"\0"),
    "a header of 4 GB": (PwtFault.header_too_large, lambda _: PRELUDE.pack(MAGIC, 1, 9, 2**32 - 1, 0) + bytes(9)),
    "a header above its cap": (
        PwtFault.header_too_large,
        lambda _: PRELUDE.pack(MAGIC, 1, MAX_HEADER_BYTES + 1, 9, 0) + bytes(99),
    ),
    "a header that unpacks to more than it declares": (
        PwtFault.header_corrupt,
        lambda _: sealed(b" " * 10_000_000, [], size=100),
    ),
    "a header that is not packed": (
        PwtFault.header_corrupt,
        lambda _: PRELUDE.pack(MAGIC, 1, 2, 2, zlib.crc32(b"{}")) + b"{}",
    ),
    "a flipped bit in the header": (
        PwtFault.header_corrupt,
        lambda t: whole_file(t)[: PRELUDE.size] + b"\0" + whole_file(t)[PRELUDE.size + 1 :],
    ),
    "no JSON": (PwtFault.header_invalid, lambda _: sealed(b"about", [])),
    "brackets without end": (PwtFault.header_invalid, lambda _: sealed(b"[" * 100_000, [])),
    "a key twice": (PwtFault.header_invalid, lambda _: sealed(b'{"about":{},"about":{},"tensors":[]}', [])),
    "not a number": (PwtFault.header_invalid, lambda _: sealed(b'{"about":{"x":NaN},"tensors":[]}', [])),
    "a list for a header": (PwtFault.header_invalid, lambda _: sealed(b"[]", [])),
    "an unknown field": (PwtFault.header_invalid, lambda t: edited(t, field(0, offset=0))),
    "a length that is true": (PwtFault.header_invalid, lambda t: edited(t, field(0, bytes=True))),
    "a length below zero": (PwtFault.header_invalid, lambda t: edited(t, field(0, bytes=-8))),
    "more levels than there can be": (PwtFault.header_invalid, lambda t: edited(t, field(0, levels=1 << 17))),
    "too many tensors": (
        PwtFault.too_many_tensors,
        lambda _: sealed(b'{"about":{},"tensors":[' + b"0," * (1 << 16) + b"0]}", []),
    ),
    "a name twice": (PwtFault.bad_name, lambda t: edited(t, field(1, name="w"))),
    "a name with a line end": (PwtFault.bad_name, lambda t: edited(t, field(0, name="w\nx"))),
    "a name without end": (PwtFault.bad_name, lambda t: edited(t, field(0, name="w" * 1025))),
    "a size below zero": (PwtFault.bad_shape, lambda t: edited(t, field(0, shape=[3, -5]))),
    "a size that overflows": (PwtFault.bad_shape, lambda t: edited(t, field(0, shape=[2**31, 2**31]))),
    "nothing times everything": (PwtFault.bad_shape, lambda t: edited(t, field(0, shape=[0, 2**32, 2**32]))),
    "nine axes": (PwtFault.bad_shape, lambda t: edited(t, field(0, shape=[1] * 9))),
    "an object type": (PwtFault.unknown_type, lambda t: edited(t, field(1, type="object"))),
    "coded integers": (PwtFault.unknown_type, lambda t: edited(t, field(0, type="int32"))),
    "an unknown format": (PwtFault.unknown_format, lambda t: edited(t, field(0, format="pickle"))),
    "a bomb of 16 GB": (PwtFault.too_large, lambda t: edited(t, field(0, shape=[2**16, 2**16]))),
    "raw values with levels": (PwtFault.bad_codebook, lambda t: edited(t, field(0, format="raw"))),
    "indices without levels": (PwtFault.bad_codebook, lambda t: edited(t, field(0, levels=0, zero=None))),
    "a reserved level that there is not": (PwtFault.bad_codebook, lambda t: edited(t, field(0, zero=4))),
    "a reserved level that is not zero": (PwtFault.bad_codebook, lambda t: edited(t, field(0, zero=1))),
    "levels out of order": (PwtFault.bad_codebook, lambda t: with_codebook(t, 0, 2, 1, 3)),
    "a level twice": (PwtFault.bad_codebook, lambda t: with_codebook(t, 0, 1, 1, 3)),
    "a level that is infinite": (PwtFault.bad_codebook, lambda t: with_codebook(t, 0, 1, 2, np.inf)),
    "something between the payloads": (PwtFault.bad_padding, lambda t: padding_filled(whole_file(t))),
    "a flipped bit in a payload": (PwtFault.checksum_mismatch, lambda t: whole_file(t)[:-1] + b"\xff"),
    "raw bytes of another shape": (PwtFault.bad_extent, lambda t: edited(t, field(1, shape=[4]))),
    "indices of another shape": (PwtFault.bad_extent, lambda t: edited(t, field(0, shape=[300, 5]))),
    "more columns than beginnings": (PwtFault.bad_extent, lambda t: edited(t, field(0, shape=[300, 5]), "csc")),
    "more columns than counts": (PwtFault.bad_extent, lambda t: edited(t, field(0, shape=[300, 5]), "shac")),
    "more columns than ends": (PwtFault.bad_extent, lambda t: edited(t, field(0, shape=[300, 5]), "hac")),
    "an overfull code": (PwtFault.bad_code, lambda t: with_body(t, "hac", lambda b: b.__setitem__(slice(0, 4), b"\1\1\1\1"))),
    "a code with gaps": (PwtFault.bad_code, lambda t: with_body(t, "hac", at(3, 9))),
    "a codeword of 255 bits": (PwtFault.bad_code, lambda t: with_body(t, "hac", at(0, 255))),
    "a column that ends early": (PwtFault.bad_stream, lambda t: with_body(t, "hac", lambda b: b.__setitem__(slice(4, 6), bytes([b[4] - 1, b[5] + 1])))),
    "a row that there is not": (PwtFault.bad_index, lambda t: with_body(t, "shac", at(10, 200))),
    "a row twice": (PwtFault.bad_index, lambda t: with_body(t, "csc", lambda b: b.__setitem__(slice(-7, -5), b"\1\1"))),
    "beginnings that go back": (PwtFault.bad_index, lambda t: with_body(t, "csc", at(4, 200))),
    "a survivor that is no level": (PwtFault.bad_index, lambda t: with_body(t, "csc", at(16, 1))),
    "more survivors than rows": (PwtFault.bad_index, lambda t: with_body(t, "shac", at(7, 6))),
    "an unknown mode": (PwtFault.bad_model, lambda t: with_body(t, "ans", at(0, 7))),
    "a billion lanes": (PwtFault.bad_model, lambda t: with_body(t, "ans", at(1, 30))),
    "a precision of 31 bits": (PwtFault.bad_model, lambda t: with_body(t, "ans", at(2, 31))),
    "an order above the precision": (PwtFault.bad_model, lambda t: with_body(t, "ans", at(3, 9))),
    "blocks of no columns": (PwtFault.bad_model, lambda t: with_body(t, "ans", at(4, 0))),
    "frequencies without end": (PwtFault.bad_model, lambda t: with_body(t, "ans", at(5, 0))),
    "sixteen thousand slots for each context": (PwtFault.bad_model, lambda t: with_contexts(t, at(2, 14))),
    "a hundred contexts": (PwtFault.bad_model, lambda t: with_contexts(t, at(5, 100))),
    "no context": (PwtFault.bad_model, lambda t: with_contexts(t, at(5, 0))),
    "knots further apart than symbols can be": (PwtFault.bad_model, lambda t: with_contexts(t, at(4, 30))),
    "contexts that begin beyond all classes": (PwtFault.bad_model, lambda t: with_contexts(t, at(6, 127))),
    "classes cut off": (PwtFault.bad_extent, lambda t: with_contexts(t, lambda b: b.__delitem__(slice(9, None)))),
    "an hour of symbols that take no room": (PwtFault.bad_model, hour_of_symbols),
    "brackets enough to fill the memory": (PwtFault.header_too_large, lambda _: sealed(b'{"about":{"x":[' + b"[]," * 300_000 + b'0]},"tensors":[]}', [])),
    "commas enough to fill the memory": (PwtFault.header_too_large, lambda _: sealed(b'{"about":{"x":[' + b"0," * 1_100_000 + b'0]},"tensors":[]}', [])),
    "more about the file than in it": (PwtFault.header_too_large, lambda _: sealed(b'{"about":{"x":"' + b"x" * (1 << 20) + b'"},"tensors":[]}', [])),
    "a lane in a wrong state": (PwtFault.bad_stream, lambda t: with_body(t, "ans", lambda b: b.__setitem__(-3, b[-3] ^ 1))),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_file_is_refused_with_its_code_and_little_memory(tmp_path, attack):
    code, make = ATTACKS[attack]
    path = tmp_path / "hostile.pwt"
    path.write_bytes(make(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(PwtError) as ours:
            read_pwt(path)
        with pytest.raises(pwt.PwtError) as theirs:
            pwt.load(path)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (ours.value.code, theirs.value.code) == (code, code)
    assert held < 12_000_000


def test_every_fault_but_those_of_skeletons_has_an_attack():
    tried = {code for code, _ in ATTACKS.values()}
    assert set(PwtFault) - tried == {PwtFault.bad_skeleton}
    assert [fault.value for fault in PwtFault] == [fault.value for fault in pwt.PwtFault]


def test_an_index_that_is_no_level_is_refused(tmp_path):
    """Three levels need two bits, which can say four."""
    path = tmp_path / "x.pwt"
    write_pwt(path, {"w": QuantizedTensor(INDICES % 3, CODEBOOK[:3], 0)}, {}, "im")
    document, payloads = fuzz_pwt.parted(path.read_bytes())
    path.write_bytes(fuzz_pwt.joined(document, [payloads[0][:12] + b"\xff\xff\xff\xff"]))
    with pytest.raises(PwtError) as ours:
        read_pwt(path)
    with pytest.raises(pwt.PwtError) as theirs:
        pwt.load(path)
    assert ours.value.code == theirs.value.code == "bad_index"


def test_survivors_that_cost_no_bits_take_little_more_memory_than_they_unpack_to(tmp_path, monkeypatch):
    """Two hundred bytes that say "two million times the same": 64 bytes were once held for each."""
    monkeypatch.setattr(fast, "worthwhile", lambda count: False)  # compiling takes memory of its own
    entries = 2_000_000
    path = tmp_path / "x.pwt"
    write_pwt(path, {"w": QuantizedTensor(np.array([[1, 0]]), CODEBOOK[:2], 0)}, {}, "ans")
    document, _ = fuzz_pwt.parted(path.read_bytes())
    document["tensors"][0] |= {"shape": [1, entries], "levels": 2, "zero": 0}
    survivors = bytes([entries & 127 | 128, entries >> 7 & 127 | 128, entries >> 14])
    lanes = 32
    # Runs, the lanes, two tables (one token of all, one level of all), their frequencies, and one block of nothing but states.
    tables = bytes([1, 5, 1, 0, 1, 0, 0, 1, 1, 0b01110110, 128, 1])
    states = np.full(lanes, 1 << 16, "<u4").tobytes()
    body = tables + survivors + states
    path.write_bytes(fuzz_pwt.joined(document, [CODEBOOK[:2].tobytes() + body]))
    for read in (lambda: pwt.load(path)["w"], lambda: read_pwt(path)[0]["w"].values()):
        tracemalloc.start()
        try:
            found = read()
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert found.shape == (1, entries) and (found == 1).all()
        assert held < 3.5 * found.nbytes + 32_000_000


SEEDS = fuzz_pwt.corpus()


@settings(max_examples=1500)
@given(st.integers(0, 2**63))
def test_damaged_file_is_read_alike_or_refused_alike_by_both_readers(seed):
    begin = time.perf_counter()
    fuzz_pwt.readers_agree(fuzz_pwt.mutated(SEEDS, random.Random(seed)))
    assert time.perf_counter() - begin < 20


def test_damaged_files_never_make_a_reader_hold_more_than_what_is_declared():
    tracemalloc.start()
    try:
        for seed in range(250):
            fuzz_pwt.readers_agree(fuzz_pwt.mutated(SEEDS, random.Random(seed)))
    finally:
        tracemalloc.stop()
