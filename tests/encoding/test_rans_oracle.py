"""Our rANS against an integer of any size, and against a published coder's count of bits."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.encoding import fast
from core.encoding.errors import PwtError, PwtFault
from core.encoding.rans import LOWEST_STATE, Model, Stream, cost_bits, encode, fitted


def decoded_by_the_text(coded: bytes, lanes: int, segments: list[tuple[int, Model]]) -> list[int]:
    """docs/pwt.md word for word, one symbol at a time, with Python's integers only."""
    states = [int.from_bytes(coded[4 * lane : 4 * lane + 4], "little") for lane in range(lanes)]
    at, found = 4 * lanes, []
    for count, model in segments:
        for number in range(count):
            state, slot = states[number % lanes], states[number % lanes] % 2**model.precision
            symbol, begin = 0, 0
            while slot >= begin + int(model.frequencies[symbol]):
                begin += int(model.frequencies[symbol])
                symbol += 1
            state = int(model.frequencies[symbol]) * (state // 2**model.precision) + slot - begin
            if state < 2**16:
                state = state * 2**16 + int.from_bytes(coded[at : at + 2], "little")
                at += 2
            states[number % lanes] = state
            found.append(symbol)
    assert at == len(coded)
    assert set(states) == {LOWEST_STATE}
    return found


@st.composite
def messages(draw: st.DrawFn) -> tuple[np.ndarray, Model]:
    seed = draw(st.integers(0, 2**32 - 1))
    alphabet = draw(st.integers(1, 40))
    count = draw(st.integers(1, 400))
    skew = draw(st.floats(0.05, 10))
    generator = np.random.default_rng(seed)
    symbols = generator.choice(alphabet, count, p=generator.dirichlet(np.full(alphabet, skew)))
    counts = np.bincount(symbols, minlength=alphabet)
    smallest = max(1, int(np.count_nonzero(counts) - 1).bit_length())
    return symbols, fitted(counts, draw(st.integers(smallest, 15)))


@given(messages(), messages(), st.integers(0, 6))
def test_decoders_agree_with_the_text_of_the_format(first, second, lanes_log2):
    lanes = 1 << lanes_log2
    coded = encode([first, second], lanes)
    expected = [*first[0].tolist(), *second[0].tolist()]
    assert decoded_by_the_text(coded, lanes, [(len(first[0]), first[1]), (len(second[0]), second[1])]) == expected
    stream = Stream(memoryview(coded), lanes)
    assert [*stream.symbols(len(first[0]), first[1]), *stream.symbols(len(second[0]), second[1])] == expected
    assert stream.finish() == len(coded)


@given(messages())
def test_size_is_that_of_a_published_coder_with_the_same_model(message):
    symbols, model = message
    used = np.flatnonzero(model.frequencies)
    if len(used) < 2:
        return
    names = np.zeros(len(model.frequencies), np.int32)
    names[used] = np.arange(len(used))
    shares = constriction.stream.model.Categorical(model.frequencies[used] / (1 << model.precision), perfect=True)
    published = constriction.stream.stack.AnsCoder()
    published.encode_reverse(names[symbols], shares)
    ours = 8 * len(encode([(symbols, model)], 1))
    assert abs(ours - published.num_valid_bits()) <= 48
    decoded = published.decode(shares, len(symbols))
    stream = Stream(memoryview(encode([(symbols, model)], 1)), 1)
    assert decoded.tolist() == names[stream.symbols(len(symbols), model)].tolist()


@given(messages(), st.integers(0, 6))
def test_size_is_the_models_cost_and_what_the_lanes_cost(message, lanes_log2):
    symbols, model = message
    bits = 8 * len(encode([(symbols, model)], 1 << lanes_log2))
    cost = cost_bits(np.bincount(symbols, minlength=len(model.frequencies)), model)
    assert cost - 1 <= bits <= cost + 32 * (1 << lanes_log2) + 1 + len(symbols) / 500


@given(messages())
def test_frequencies_add_up_and_leave_out_only_what_does_not_occur(message):
    symbols, model = message
    counts = np.bincount(symbols, minlength=len(model.frequencies))
    assert int(model.frequencies.sum()) == 1 << model.precision
    assert ((model.frequencies > 0) == (counts > 0)).all()


@pytest.mark.parametrize("lanes", [1, 16, 64])
def test_words_that_end_early_are_refused(lanes):
    symbols = np.arange(4000) % 7
    model = fitted(np.bincount(symbols), 12)
    coded = encode([(symbols, model)], lanes)
    with pytest.raises(PwtError) as caught:
        Stream(memoryview(coded[:-8]), lanes).symbols(len(symbols), model)
    assert caught.value.code is PwtFault.bad_stream


@pytest.mark.parametrize("lanes", [1, 16, 64, 1024])
def test_compiled_and_numpy_decoders_give_the_same(monkeypatch, lanes):
    symbols = np.random.default_rng(0).choice(50, 30_001, p=np.random.default_rng(1).dirichlet(np.full(50, 0.3)))
    model = fitted(np.bincount(symbols, minlength=50), 13)
    coded = memoryview(encode([(symbols, model)], lanes))
    found = []
    for compiled in (False, True):
        monkeypatch.setattr(fast, "worthwhile", lambda count, compiled=compiled: compiled)
        stream = Stream(coded, lanes)
        found.append(stream.symbols(len(symbols), model))
        assert stream.finish() == len(coded)
    assert (found[0] == symbols).all()
    assert (found[1] == symbols).all()
