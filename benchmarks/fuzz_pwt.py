"""Damage `.pwt` files in every way that is easy to think of, and read them with both readers.

    python -m benchmarks.fuzz_pwt [--count 20000] [--seed 0] [--keep DIR]

Each input is one of a few small files (every format) with some of: bytes flipped, overwritten, inserted, cut out, the end
cut off; header fields replaced; payload bytes damaged. After most of these the checksums are made right again, so that the
damage reaches the decoders. Either reader must give tensors of the declared shapes or raise PwtError; both must agree on
which; none may take longer than `--slowest` seconds or hold more than the declared sizes and a fixed working set. Prints how
many inputs there were, and how they ended. `--keep` stores an input that breaks these rules. A coverage-guided fuzzer can
take `readers_agree` as its target.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import struct
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pennyweight import pwt
from rich.console import Console
from rich.table import Table

from core.encoding.container import read_pwt, write_pwt
from core.encoding.errors import PwtError
from core.encoding.formats import FORMATS
from core.encoding.header import PRELUDE, parse_header
from core.encoding.quantized import QuantizedTensor

MAX_DECODED_BYTES = 1 << 20
# Of what a file says that it unpacks to: what a decoder keeps per entry beside the entry while it works.
HELD_PER_BYTE = 16
WORKING_BYTES = 4 << 20  # model tables and headers
_NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    255,
    256,
    65535,
    65536,
    2**31,
    2**32 - 1,
    2**32,
    2**48,
    2**63,
    -1,
    1.5,
    None,
    "1",
    [],
    True,
]
_WORDS = [
    "",
    "raw",
    "im",
    "csc",
    "hac",
    "shac",
    "ans",
    "zip",
    "float32",
    "bool",
    "int64",
    "a",
    "\x00",
    "é",
    3,
    None,
    [],
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slowest", type=float, default=5.0, help="Seconds that one input may take.")
    parser.add_argument("--keep", type=Path, help="Folder for the inputs that broke a rule.")
    arguments = parser.parse_args()
    seeds = corpus()
    endings: Counter[str] = Counter()
    broken = 0
    begin = time.perf_counter()
    for number in range(arguments.count):
        content = mutated(seeds, random.Random(arguments.seed * 1_000_003 + number))
        start = time.perf_counter()
        try:
            ending = readers_agree(content)
            if time.perf_counter() - start > arguments.slowest:
                ending = "BROKEN: slow"
        except Exception as error:
            ending = f"BROKEN: {type(error).__name__}: {error}"
        endings[ending] += 1
        if ending.startswith("BROKEN"):
            broken += 1
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                (arguments.keep / f"{arguments.seed}-{number}.pwt").write_bytes(content)
    table = Table("ending", "inputs", box=None)
    for ending, count in endings.most_common():
        table.add_row(ending, str(count))
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{arguments.count} inputs in {time.perf_counter() - begin:.0f} s, of {len(seeds)} files; {broken} broke a rule"
    )
    return 1 if broken else 0


def corpus() -> list[bytes]:
    """Small whole files: every format, with and without a reserved zero, plain arrays, and a skeleton."""
    generator = np.random.default_rng(0)

    def shared(shape: tuple[int, ...], levels: int, density: float, zero: bool = True) -> QuantizedTensor:
        codebook = np.sort(generator.normal(size=levels)).astype(np.float32)
        indices = generator.integers(0, levels, shape)
        if not zero:
            return QuantizedTensor(indices, codebook)
        indices = np.where(generator.random(shape) < density, indices + 1, 0)
        return QuantizedTensor(indices, np.concatenate([[0], codebook]).astype(np.float32), 0)

    coded = {
        "dense": shared((6, 5, 3), 9, 1.0, zero=False),
        "sparse": shared((9, 40), 5, 0.1),
        "k1": shared((2, 3), 1, 1.0),
        "scaled": scaled(),
    }
    plain = {
        "bias": generator.normal(size=6).astype(np.float32),
        "pruned": np.where(generator.random((8, 8)) < 0.1, 1.5, 0).astype(np.float32),
        "count": np.array(3),
        "flag": np.array([True, False]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "seed.pwt"
        files = []
        for name in (*FORMATS, "auto"):
            write_pwt(
                path, {**coded, **plain}, {"model": "seed"}, name, skeleton=b"\x3a\x00" if name == "auto" else None
            )
            files.append(path.read_bytes())
            for tensor, value in coded.items():
                write_pwt(path, {tensor: value}, {}, name)
                files.append(path.read_bytes())
    return files


def scaled() -> QuantizedTensor:
    """Channels of different scale, which `ans` codes with contexts."""
    generator = np.random.default_rng(1)
    scales = 2.0 ** generator.integers(-3, 3, (16, 1, 1)) * 2.0 ** generator.integers(-2, 2, (1, 12, 1))
    values = np.clip(np.round(generator.normal(size=(16, 12, 9)) * scales), -7, 7)
    return QuantizedTensor((values + 7).astype(np.uint8), np.arange(-7, 8, dtype=np.float32) / 8)


def readers_agree(content: bytes) -> str:
    """How reading ended: the fault, or "read". Raises AssertionError where a reader breaks a rule."""
    allowed = HELD_PER_BYTE * _declared(content) + WORKING_BYTES
    with tempfile.NamedTemporaryFile(suffix=".pwt") as file:
        file.write(content)
        file.flush()
        ours = _ending(lambda: read_pwt(file.name, MAX_DECODED_BYTES)[0], PwtError, allowed)
        theirs = _ending(lambda: _client(file.name), pwt.PwtError, allowed)
    assert type(ours) is type(theirs) and (not isinstance(ours, str) or ours == theirs), f"core {ours}, client {theirs}"
    if isinstance(ours, str):
        return ours
    for name, value in ours.items():
        expected = value.values() if isinstance(value, QuantizedTensor) else value
        assert theirs[name].shape == expected.shape, f"{name}: shapes differ"
        assert theirs[name].tobytes() == expected.tobytes(), f"{name}: values differ"
    return "read"


def _declared(content: bytes) -> int:
    """The bytes that a file unpacks to by its header, if it can be read, and if they are allowed."""
    try:
        header = parse_header(json.dumps(parted(content)[0]).encode())
    except (PwtError, ValueError, KeyError, TypeError, struct.error, zlib.error):
        return 0
    size = sum(math.prod(entry.shape) * entry.item_bytes for entry in header.tensors)
    return size if size <= MAX_DECODED_BYTES else 0


def _client(path: str) -> dict[str, np.ndarray]:
    with pwt.open(path, MAX_DECODED_BYTES) as file:
        found = {name: file[name] for name in file.names}
        _ = file.onnx_skeleton
        return found


def _ending(read: Callable[[], dict[str, Any]], fault: type[Exception], allowed: int) -> dict[str, Any] | str:
    tracing = tracemalloc.is_tracing()
    if tracing:
        tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0] if tracing else 0
    try:
        return read()
    except fault as error:
        return str(error.code)
    finally:
        if tracing:
            held = tracemalloc.get_traced_memory()[1] - before
            assert held <= allowed, f"{held} bytes were held, where {allowed} are enough"


def mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    """One damaged file."""
    content = bytearray(draw.choice(seeds))
    damage = draw.choice([_raw_damage, _header_damage, _payload_damage, _payload_damage])
    return bytes(damage(content, draw))


def _raw_damage(content: bytearray, draw: random.Random) -> bytearray:
    """Bytes anywhere, checksums left wrong."""
    for _ in range(draw.randint(1, 4)):
        _damage(content, 0, draw)
    return content


def _header_damage(content: bytearray, draw: random.Random) -> bytearray:
    """A field of the JSON replaced, removed or added, packed again with a right checksum."""
    document, payloads = parted(bytes(content))
    targets = [document, *document["tensors"]]
    for _ in range(draw.randint(1, 3)):
        target = draw.choice(targets)
        key = draw.choice([*target, "name", "shape", "levels", "zero", "extra"])
        change = draw.randrange(5)
        if change == 0:
            target.pop(key, None)
        elif change == 1 and isinstance(target.get("shape"), list):
            target["shape"] = [*target["shape"][:-1], draw.choice(_NUMBERS)]
        elif change == 2:
            target[key] = draw.choice(_WORDS)
        else:
            target[key] = draw.choice(_NUMBERS)
    return bytearray(joined(document, payloads))


def _payload_damage(content: bytearray, draw: random.Random) -> bytearray:
    """Bytes of one payload, whose length and checksum are then made right."""
    document, payloads = parted(bytes(content))
    number = draw.randrange(len(payloads))
    payload = bytearray(payloads[number])
    for _ in range(draw.randint(1, 3)):
        # Most structure is at the beginning of a body, behind the codebook.
        entry = document["tensors"][number] if number < len(document["tensors"]) else {}
        _damage(payload, draw.choice([0, 4 * entry.get("levels", 0)]), draw)
    payloads[number] = bytes(payload)
    return bytearray(joined(document, payloads))


def _damage(content: bytearray, first: int, draw: random.Random) -> None:
    if len(content) <= first:
        content.extend(draw.randbytes(draw.randint(0, 9)))
        return
    at = first + int((len(content) - first) * draw.random() ** draw.choice([1, 3]))
    length = draw.choice([1, 1, 2, 4, 8, 33])
    kind = draw.randrange(6)
    if kind == 0:
        content[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        content[at : at + length] = bytes([draw.choice([0, 1, 127, 128, 254, 255])]) * length
    elif kind == 2:
        content[at : at + length] = draw.randbytes(length)
    elif kind == 3:
        content[at:at] = draw.randbytes(length)
    elif kind == 4:
        del content[at : at + length]
    else:
        del content[at:]


def parted(content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The document and the payloads of a whole file."""
    _, _, packed_bytes, _, _ = PRELUDE.unpack(content[: PRELUDE.size])
    end = PRELUDE.size + packed_bytes
    document = json.loads(zlib.decompress(content[PRELUDE.size : end]))
    payloads = []
    for entry in [*document["tensors"], *([document["onnx_skeleton"]] if "onnx_skeleton" in document else [])]:
        begin = end + -end % 8
        end = begin + entry["bytes"]
        payloads.append(content[begin:end])
    return document, payloads


def joined(document: dict[str, Any], payloads: list[bytes]) -> bytes:
    """A file of these, its lengths and checksums right unless the damage made them something else than numbers."""
    entries = document.get("tensors")
    entries = list(entries) if isinstance(entries, list) else []
    if isinstance(document.get("onnx_skeleton"), dict):
        entries.append(document["onnx_skeleton"])
    for entry, payload in zip(entries, payloads, strict=False):
        if isinstance(entry, dict):
            if type(entry.get("bytes")) is int and 0 <= entry["bytes"] < 1 << 16:
                entry["bytes"] = len(payload)
            if type(entry.get("crc32")) is int:
                entry["crc32"] = zlib.crc32(payload)
    header = json.dumps(document).encode()
    packed = zlib.compress(header)
    file = bytearray(PRELUDE.pack(b"\x93PWT\r\n\x1a\n", 1, len(packed), len(header), zlib.crc32(packed)) + packed)
    for payload in payloads:
        file += bytes(-len(file) % 8) + payload
    return bytes(file)


if __name__ == "__main__":
    sys.exit(main())
