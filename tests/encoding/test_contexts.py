"""`ans` with contexts: channels of different scale, frequencies from knots, and blocks that threads share."""

from __future__ import annotations

import lzma
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.encoding import ans, ans_decoder, fast, formats, tables
from core.encoding.ans_decoder import CONTEXTS, Decoder
from core.encoding.errors import PwtError
from core.encoding.layout import layout_of
from core.encoding.quantized import QuantizedTensor


def scaled(shape: tuple[int, ...], levels: int, seed: int = 0) -> QuantizedTensor:
    """Normal weights whose output and input channels differ in scale."""
    generator = np.random.default_rng(seed)
    ones = (1,) * (len(shape) - 2)
    scales = np.exp2(generator.normal(size=(shape[0], 1, *ones)) + generator.normal(size=(1, shape[1], *ones)))
    values = np.round(generator.normal(size=shape) * scales * levels / 12)
    half = levels // 2
    indices = np.clip(values, -half, half) + half
    return QuantizedTensor(indices.astype(np.uint8), np.arange(-half, half + 1, dtype=np.float32))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("shape", "levels"), [((40, 30, 3, 3), 200), ((60, 90), 14)])
def test_channels_of_different_scale_take_less_than_their_entropy_and_than_xz(monkeypatch, compiled, shape, levels):
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    tensor = scaled(shape, levels)
    body = ans.encode_body(tensor)
    shares = np.bincount(tensor.indices.reshape(-1)) / tensor.indices.size
    entropy_bytes = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * tensor.indices.size / 8
    assert body[0] == CONTEXTS
    assert len(body) < 0.97 * entropy_bytes and len(body) < 0.97 * len(
        lzma.compress(tensor.indices.tobytes(), preset=9)
    )
    decoder = Decoder(memoryview(body), layout_of(tensor))
    flat = tensor.indices.reshape(shape[0], -1)
    assert (decoder.columns(0, shape[0]) == flat).all()
    assert (decoder.columns(7, 19) == flat[7:19]).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_threads_share_blocks_where_that_helps_and_give_the_same(monkeypatch, compiled):
    monkeypatch.setattr(ans, "_BLOCK_ENTRIES", 900)
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    pools = []
    monkeypatch.setattr(
        ans_decoder, "ThreadPoolExecutor", lambda threads: pools.append(threads) or ThreadPoolExecutor(threads)
    )
    tensor = scaled((50, 20, 3, 3), 30)
    payload, _ = formats.encode(tensor, "ans")
    assert len(Decoder(memoryview(payload)[4 * len(tensor.codebook) :], layout_of(tensor)).blocks) > 3
    for threads in (1, 2, 5):
        assert (formats.decode(payload, "ans", layout_of(tensor), threads).indices == tensor.indices).all()
    assert pools == ([2, 5] if compiled else [])


@given(st.integers(1, 300), st.integers(0, 8), st.integers(9, 13), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_frequencies_from_knots_fill_the_slots_and_follow_the_lines(symbols, stride_log2, precision, contexts, seed):
    count = tables.knots_of(symbols, stride_log2)
    knots = np.random.default_rng(seed).integers(0, 5, (contexts, count)) ** 4
    found = tables.between(knots, stride_log2, symbols, precision)
    assert found.shape == (contexts, symbols) and (found >= 0).all()
    assert (found.sum(axis=1) == 1 << precision).all()
    stride = 1 << stride_log2
    for context in range(contexts):
        line = np.interp(np.arange(symbols), np.arange(count) * stride, knots[context])
        if line.sum() == 0:
            assert found[context, 0] == 1 << precision
            continue
        assert ((found[context] > 0) == (line > 0)).all()
        used = line > 0
        wanted = 1 + line[used] / line.sum() * ((1 << precision) - used.sum())
        assert (np.sort(np.abs(found[context, used] - wanted))[:-1] <= 1).all()


@given(st.lists(st.integers(0, tables.LARGEST), min_size=1, max_size=60), st.integers(0, 11))
def test_tables_come_back_as_they_were_written(values, order):
    content = tables.written([(np.array(values), order), (np.array(values[::-1]), 0)])
    found, end = tables.read(memoryview(content), 0, [len(values)] * 2, [order, 0])
    assert [one.tolist() for one in found] == [values, values[::-1]] and end == len(content)


def test_more_symbols_than_slots_are_refused():
    with pytest.raises(PwtError, match="more symbols than"):
        tables.between(np.ones((1, 20), np.int64), 0, 20, 4)


def test_a_tensor_of_one_value_is_read_at_once_whatever_its_size():
    tensor = QuantizedTensor(np.zeros((3000, 1000), np.uint8), np.array([0.5], np.float32))
    payload, name = formats.encode(tensor)
    assert len(payload) < 60 and (formats.decode(payload, name, layout_of(tensor)).indices == 0).all()
