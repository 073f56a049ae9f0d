"""The codings: bit-exact round trips, sizes by formula, and the papers' bounds and figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.encoding import ans, bits, fast, formats, hac, huffman, im, shac
from core.encoding.layout import columns_of, layout_of, machine_type, rows_of
from core.encoding.quantized import QuantizedTensor

WORD_BITS = 32


def equiprobable(rows: int, columns: int, levels: int, density: float, seed: int = 0) -> QuantizedTensor:
    """A layer of `columns` outputs and `rows` inputs: `levels` values, equally likely among the survivors."""
    generator = np.random.default_rng(seed)
    codebook = np.concatenate([[0], np.sort(generator.normal(size=levels))]).astype(np.float32)
    indices = generator.integers(1, levels + 1, (columns, rows))
    indices[generator.random((columns, rows)) >= density] = 0
    return QuantizedTensor(indices, codebook, 0)


@st.composite
def tensors(draw: st.DrawFn) -> QuantizedTensor:
    shape = tuple(draw(st.lists(st.integers(0, 12), max_size=4)))
    levels = draw(st.integers(1, 300))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codebook = np.unique(generator.normal(size=levels).astype(np.float32))
    zero = draw(st.none() | st.integers(0, len(codebook)))
    shares = generator.dirichlet(np.full(len(codebook), draw(st.floats(0.02, 5))))
    indices = generator.choice(len(codebook), shape, p=shares)
    if zero is not None:
        codebook = np.insert(codebook, zero, 0).astype(np.float32)
        indices = np.where(generator.random(shape) < draw(st.floats(0, 1)), zero, indices + (indices >= zero))
    return QuantizedTensor(indices, codebook, zero)


def assert_same(found: QuantizedTensor, expected: QuantizedTensor) -> None:
    assert found.indices.shape == expected.indices.shape
    assert (found.indices == expected.indices).all()
    assert found.codebook.tobytes() == expected.codebook.tobytes()
    assert found.zero == expected.zero


@settings(max_examples=60)
@given(tensors(), st.sampled_from(sorted(formats.FORMATS)))
def test_every_coding_gives_the_tensor_back_bit_for_bit_in_the_bytes_that_it_announces(tensor, name):
    payload, chosen = formats.encode(tensor, name)
    assert chosen == name
    assert len(payload) == formats.encoded_bytes(tensor, name)
    assert_same(formats.decode(payload, name, layout_of(tensor)), tensor)


@settings(max_examples=40)
@given(tensors(), st.sampled_from(sorted(formats.FORMATS)), st.data())
def test_a_range_of_columns_is_that_part_of_the_tensor(tensor, name, data):
    layout = layout_of(tensor)
    start = data.draw(st.integers(0, layout.columns))
    stop = data.draw(st.integers(start, layout.columns))
    payload, _ = formats.encode(tensor, name)
    _, decoder = formats.open_payload(payload, name, layout)
    whole = tensor.indices.reshape(layout.columns, layout.rows)
    assert (decoder.columns(start, stop) == whole[start:stop]).all()


@settings(max_examples=30)
@given(tensors())
def test_auto_is_never_larger_than_any_coding(tensor):
    payload, _ = formats.encode(tensor)
    assert len(payload) == min(formats.encoded_bytes(tensor, name) for name in formats.FORMATS)


EDGES = {
    "nothing survives": QuantizedTensor(np.zeros((5, 7), int), np.array([0, 1], np.float32), 0),
    "one level": QuantizedTensor(np.zeros((40, 3), int), np.array([0.5], np.float32)),
    "one column is empty": QuantizedTensor(
        np.array([[1, 2, 1], [0, 0, 0], [2, 0, 1]]), np.arange(3, dtype=np.float32), 0
    ),
    "the last word is full": QuantizedTensor(np.arange(64).reshape(8, 8) % 4, np.arange(4, dtype=np.float32)),
    "a scalar": QuantizedTensor(np.array(1), np.array([2, 3], np.float32)),
    "no entries": QuantizedTensor(np.zeros((0, 3), int), np.array([2, 3], np.float32)),
    "columns of no rows": QuantizedTensor(np.zeros((3, 0), int), np.array([2, 3], np.float32)),
    "65536 levels": QuantizedTensor(
        np.arange(1 << 16).reshape(256, 256) % 20_000, np.arange(1 << 16, dtype=np.float32) - 7
    ),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", [*sorted(formats.FORMATS), "auto"])
def test_edges_round_trip(edge, name):
    payload, chosen = formats.encode(EDGES[edge], name)
    assert len(payload) == formats.encoded_bytes(EDGES[edge], name)
    assert_same(formats.decode(payload, chosen, layout_of(EDGES[edge])), EDGES[edge])


@pytest.mark.parametrize("name", sorted(formats.FORMATS))
def test_compiled_kernels_give_what_numpy_gives(monkeypatch, name):
    tensor = equiprobable(150, 130, 40, 0.3)
    payload, _ = formats.encode(tensor, name)
    for compiled in (False, True):
        monkeypatch.setattr(fast, "worthwhile", lambda count, compiled=compiled: compiled)
        assert_same(formats.decode(payload, name, layout_of(tensor)), tensor)


def test_codewords_cross_words_and_reach_their_greatest_length():
    """Counts in the ratios of Fibonacci numbers make the longest codes: 40 symbols would take 39 bits."""
    counts = [1, 1]
    while len(counts) < 40:
        counts.append(counts[-1] + counts[-2])
    lengths = huffman.code_lengths(np.array(counts))
    assert lengths.max() <= huffman.MAX_LENGTH
    code = huffman.Code(lengths)
    symbols = np.random.default_rng(0).integers(0, 40, 500)
    stream = huffman.encode(symbols, code)
    total = int(lengths[symbols].sum())
    assert len(stream) == bits.stream_bytes(total)
    ends = np.array([total])
    found = huffman.decode(bits.words_of(stream), np.array([0]), ends, np.array([500]), code)
    assert (found == symbols).all()


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=300))
def test_huffman_lies_within_a_bit_of_the_entropy(counts):
    counts = np.array(counts)
    used = counts[counts > 0]
    lengths = huffman.code_lengths(counts)
    average = float((lengths * counts).sum() / max(1, counts.sum()))
    if len(used) < 2:
        assert average == len(used)
        return
    entropy = float(-(used / used.sum() * np.log2(used / used.sum())).sum())
    assert entropy - 1e-9 <= average < entropy + 1
    assert sum(2.0 ** -int(length) for length in lengths if length) == 1


# METHODS §2.5, B = 32. The printed sHAC bound charges n words for the rows; here every survivor is charged its row.


@settings(max_examples=60)
@given(tensors())
def test_hac_keeps_the_papers_bound(tensor):
    layout = layout_of(tensor)
    if layout.entries == 0:
        return
    account = hac.accounting(tensor)
    distinct = len(np.unique(tensor.indices))
    assert account.stream <= layout.entries * (1 + math.log2(distinct)) + WORD_BITS
    assert account.stream >= layout.entries
    assert account.rows == account.counts == 0
    assert account.total == 8 * len(hac.encode(tensor))


@settings(max_examples=60)
@given(tensors())
def test_shac_keeps_the_papers_bound_with_a_row_charged_per_survivor(tensor):
    layout = layout_of(tensor)
    if layout.entries == 0:
        return
    account = shac.accounting(tensor)
    alive = tensor.indices[tensor.indices != tensor.zero] if tensor.zero is not None else tensor.indices
    distinct = max(1, len(np.unique(alive)))
    row_bits = 8 * machine_type(layout.rows - 1).itemsize
    count_bits = 8 * machine_type(layout.rows).itemsize
    survivors = alive.size
    assert account.rows == survivors * row_bits
    assert account.payload <= survivors * (1 + math.log2(distinct) + row_bits) + count_bits * layout.columns + WORD_BITS
    assert account.total == 8 * len(shac.encode(tensor))


@given(tensors())
def test_index_map_and_sparse_columns_have_the_papers_size(tensor):
    layout = layout_of(tensor)
    width = math.ceil(math.log2(layout.levels))
    assert im.size_bits(tensor) == WORD_BITS * math.ceil(layout.entries * width / WORD_BITS)
    survivors = int((tensor.indices != tensor.zero).sum()) if tensor.zero is not None else layout.entries
    row_bits = 8 * machine_type(max(0, layout.rows - 1)).itemsize
    assert formats.FORMATS["csc"].size_bits(tensor) == survivors * (WORD_BITS + row_bits) + WORD_BITS * (
        layout.columns + 1
    )


# METHODS §2.7, "our synthetic run (512×4096, equiprobable k)": ψ at densities 0.10, 0.05, 0.01 for k = 32 and 256.
PSI = {
    (0.10, 32): (0.047, 0.068),
    (0.10, 256): (0.057, 0.077),
    (0.05, 32): (0.039, 0.035),
    (0.05, 256): (0.044, 0.040),
    (0.01, 32): (0.033, 0.0085),
    (0.01, 256): (0.034, 0.0097),
}


@pytest.mark.parametrize(("density", "levels"), PSI)
def test_huffman_formats_take_what_the_synthetic_run_of_the_specification_took(density, levels):
    tensor = equiprobable(512, 4096, levels, density)
    words = WORD_BITS * tensor.indices.size
    codebook = WORD_BITS * levels
    printed_hac, printed_shac = PSI[density, levels]
    last_digit = 1e-4 if printed_shac < 0.01 else 1e-3
    account, sparse = hac.accounting(tensor), shac.accounting(tensor)
    assert abs(round((account.payload + account.code + codebook) / words, 3) - printed_hac) <= 1.001e-3
    digits = 4 if last_digit == 1e-4 else 3
    assert abs(round((sparse.total + codebook) / words, digits) - printed_shac) <= 1.001 * last_digit
    assert account.payload / words >= 1 / WORD_BITS


@pytest.mark.parametrize(("levels", "density"), [(32, 0.4), (256, 0.4), (32, 0.1), (256, 0.1), (32, 0.01), (256, 0.01)])
def test_ans_lies_within_two_percent_of_the_entropy(levels, density):
    tensor = equiprobable(512, 1024, levels, density)
    body = ans.encode_body(tensor)
    shares = np.bincount(tensor.indices.reshape(-1)) / tensor.indices.size
    used = shares[shares > 0]
    entropy_bytes = float(-(used * np.log2(used)).sum()) * tensor.indices.size / 8
    header = ans.header_bytes(memoryview(body), layout_of(tensor))
    assert len(body) <= 1.02 * entropy_bytes + header
    assert len(body) >= 0.999 * entropy_bytes


def test_large_tensors_are_cut_into_blocks_that_decode_on_their_own(monkeypatch):
    monkeypatch.setattr(ans, "_BLOCK_BYTES", 400)
    for density in (1.0, 0.05):
        tensor = equiprobable(70, 301, 32, density)
        payload, _ = formats.encode(tensor, "ans")
        _, decoder = formats.open_payload(payload, "ans", layout_of(tensor))
        assert (decoder.columns(0, 301) == tensor.indices).all()
        assert (decoder.columns(137, 223) == tensor.indices[137:223]).all()
        assert len(decoder.blocks) > 1


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (QuantizedTensor(np.array([0, 2]), np.array([1, 2], np.float32)), "outside the 2 levels"),
        (QuantizedTensor(np.array([0, -1]), np.array([1, 2], np.float32)), "outside the 2 levels"),
        (QuantizedTensor(np.array([0, 1]), np.array([2, 1], np.float32)), "not strictly increasing"),
        (QuantizedTensor(np.array([0, 1]), np.array([1, 2], np.float32), 0), "no level of value 0"),
        (QuantizedTensor(np.array([0, 1]), np.array([1, np.nan], np.float32)), "not finite"),
        (QuantizedTensor(np.array([0.0, 1]), np.array([1, 2], np.float32)), "must be integers"),
        (QuantizedTensor(np.array([0, 1]), np.array([1, 2.0])), "must be float32"),
        (QuantizedTensor(np.array([0, 1]), np.array([], np.float32)), "0 levels"),
    ],
)
def test_tensors_that_break_the_rules_are_refused(tensor, complaint):
    with pytest.raises(formats.EncodingError, match=complaint):
        formats.encode(tensor)


def test_an_unknown_format_is_refused_with_those_that_there_are():
    with pytest.raises(formats.EncodingError, match="ans, csc, hac, im, shac and auto"):
        formats.encode(EDGES["a scalar"], "zip")


def test_rows_and_columns_of_a_shape():
    assert (rows_of((4096, 512)), columns_of((4096, 512))) == (512, 4096)
    assert (rows_of((64, 32, 3, 3)), columns_of((64, 32, 3, 3))) == (288, 64)
    assert (rows_of((7,)), columns_of((7,))) == (7, 1)
    assert (rows_of(()), columns_of(())) == (1, 1)
