"""Products in compressed form against the dense product."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.encoding import fast, formats
from core.encoding.errors import PwtError, PwtFault
from core.encoding.layout import Layout, layout_of
from core.encoding.products import PRODUCT_FORMATS, CompressedMatrix
from core.encoding.quantized import QuantizedTensor


def layer(shape: tuple[int, ...], levels: int, density: float, seed: int = 0) -> QuantizedTensor:
    generator = np.random.default_rng(seed)
    codebook = np.concatenate([[0], np.sort(generator.normal(size=levels))]).astype(np.float32)
    indices = np.where(generator.random(shape) < density, generator.integers(1, levels + 1, shape), 0)
    return QuantizedTensor(indices, codebook, 0)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max(initial=0) <= 1e-5 * max(1.0, np.abs(expected).max(initial=0))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("format", PRODUCT_FORMATS)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.01, 0.0])
def test_product_is_the_dense_one(monkeypatch, compiled, format, density):
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    tensor = layer((130, 90), 33, density)
    matrix = CompressedMatrix.of(tensor, format)
    x = np.random.default_rng(1).normal(size=(5, 90)).astype(np.float32)
    dense = x.astype(np.float64) @ tensor.values().T.astype(np.float64)
    assert_near(matrix.multiply(x), dense.astype(np.float32))
    assert_near(matrix.multiply(x[0]), dense[0].astype(np.float32))
    assert_near(matrix.multiply(x, threads=3, tile_bytes=500), dense.astype(np.float32))
    assert_near(matrix.multiply(x[:1], threads=2), dense[:1].astype(np.float32))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("format", PRODUCT_FORMATS)
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        ((1, 1), (0, 0), (1, 1), 1),
        ((2, 1), (1, 2), (1, 1), 1),
        ((1, 1), (2, 2), (2, 2), 2),
        ((1, 1), (1, 1), (1, 1), 6),
    ],
)
def test_convolution_is_the_dense_one(monkeypatch, compiled, format, stride, padding, dilation, groups):
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    tensor = layer((12, 6 // groups, 3, 3), 15, 0.4)
    images = np.random.default_rng(1).normal(size=(2, 6, 9, 8)).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(images).double(),
        torch.from_numpy(tensor.values()).double(),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    matrix = CompressedMatrix.of(tensor, format)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    assert_near(matrix.convolve(images, **options), expected.float().numpy())
    assert_near(matrix.convolve(images, **options, tile_bytes=2000, threads=2), expected.float().numpy())


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 9), st.floats(0, 1), st.sampled_from(PRODUCT_FORMATS))
def test_product_of_any_shape(rows, columns, levels, density, format):
    tensor = layer((columns, rows), levels, density)
    x = np.random.default_rng(2).normal(size=(2, rows)).astype(np.float32)
    assert_near(CompressedMatrix.of(tensor, format).multiply(x, tile_bytes=100), x @ tensor.values().T)


@pytest.mark.parametrize("pairs", [True, False], ids=["short codewords", "long codewords"])
@pytest.mark.parametrize("columns", [1, 3, 4, 9])
def test_a_vector_times_codewords_longer_than_a_window(monkeypatch, pairs, columns):
    """Of few bits, most of them, so that two are read at once, or of many; some of either are longer than 11 bits."""
    monkeypatch.setattr(fast, "worthwhile", lambda count: True)
    generator = np.random.default_rng(3)
    common = (
        generator.geometric(0.5, (columns, 20_000)).clip(1, 8)
        if pairs
        else generator.integers(1, 200, (columns, 20_000))
    )
    symbols = np.where(
        generator.random((columns, 20_000)) < 0.004, generator.integers(200, 300, (columns, 20_000)), common
    )
    symbols[generator.random((columns, 20_000)) < 0.5] = 0
    if columns > 2:
        symbols[1] = 0  # a column without survivors
    codebook = np.concatenate([[0], np.sort(np.abs(generator.normal(size=300)))]).astype(np.float32)
    matrix = CompressedMatrix.of(tensor := QuantizedTensor(symbols, codebook, 0), "shac")
    assert matrix._windows.pairs == pairs and int(matrix._decoder.code.lengths.max()) > 11
    x = generator.normal(size=20_000).astype(np.float32)
    expected = x.astype(np.float64) @ tensor.values().T.astype(np.float64)
    assert_near(matrix.multiply(x), expected.astype(np.float32))
    assert_near(matrix.multiply(x, tile_bytes=3000), expected.astype(np.float32))


def test_without_a_format_the_smallest_is_taken():
    assert CompressedMatrix.of(layer((64, 300), 16, 0.02)).format == "shac"
    assert CompressedMatrix.of(layer((64, 300), 16, 0.4)).format == "hac"
    even = QuantizedTensor(np.arange(64 * 300).reshape(64, 300) % 16, np.arange(16, dtype=np.float32))
    assert CompressedMatrix.of(even).format == "im"


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("format", PRODUCT_FORMATS)
def test_memory_is_the_file_and_a_tile(monkeypatch, compiled, format):
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    tensor = layer((500, 400), 32, 0.05)
    payload, _ = formats.encode(tensor, format)
    x = np.ones((1, 400), np.float32)
    CompressedMatrix(payload, format, layout_of(tensor)).multiply(x)  # compiles, where that is to be done
    tracemalloc.start()
    try:
        CompressedMatrix(payload, format, layout_of(tensor)).multiply(x, tile_bytes=1 << 17)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A tile, the kernel's copy of its words, the columns' positions, the code's tables of 2**11 entries, and numpy's chunk.
    assert held <= (1 << 17) * 2 + 40 * 500 + (1 << 17) + (1 << 18)


@pytest.mark.parametrize("levels", [6, 90])
@pytest.mark.parametrize("compiled", [False, True])
def test_damage_is_found_while_multiplying(monkeypatch, compiled, levels):
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    tensor = layer((40, 50), levels, 0.5)
    x = np.ones((1, 50), np.float32)
    for format, code in (("hac", PwtFault.bad_stream), ("shac", PwtFault.bad_stream), ("im", PwtFault.bad_index)):
        payload = bytearray(formats.encode(tensor, format)[0])
        payload[-9:] = b"\xff" * 9
        with pytest.raises(PwtError) as caught:
            CompressedMatrix(bytes(payload), format, layout_of(tensor)).multiply(x)
        assert caught.value.code is code


@pytest.mark.parametrize("compiled", [False, True])
def test_a_row_that_is_there_twice_is_refused_when_the_matrix_is_made(monkeypatch, compiled):
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    tensor = layer((4, 50), 3, 1.0)
    payload = bytearray(formats.encode(tensor, "shac")[0])
    # Codebook and lengths of four levels, a byte for the bits of each column, one for its survivors.
    first_row = 4 * 4 + 4 + 4 + 4
    assert payload[first_row : first_row + 3] == bytes([0, 1, 2])
    payload[first_row + 1] = 0
    with pytest.raises(PwtError) as caught:
        CompressedMatrix(bytes(payload), "shac", layout_of(tensor))
    assert caught.value.code is PwtFault.bad_index


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("format", ["hac", "shac"])
def test_symbols_without_a_codeword_are_refused_before_a_loop_looks_one_up(monkeypatch, compiled, format):
    monkeypatch.setattr(fast, "worthwhile", lambda count: compiled)
    rows = b"" if format == "hac" else bytes([5] * 4) + bytes(range(5)) * 4
    payload = np.array([0, 1], "<f4").tobytes() + bytes(2) + bytes(4) + rows
    with pytest.raises(PwtError) as caught:
        CompressedMatrix(payload, format, Layout((4, 5), 2, 0)).multiply(np.ones(5, np.float32))
    assert caught.value.code is PwtFault.bad_code


def test_what_does_not_fit_is_refused():
    matrix = CompressedMatrix.of(layer((4, 6), 3, 1.0), "im")
    with pytest.raises(ValueError, match="the matrix has 6 rows"):
        matrix.multiply(np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match="no kernel"):
        matrix.convolve(np.ones((1, 6, 3, 3), np.float32))
    with pytest.raises(ValueError, match="there are hac, shac, im"):
        CompressedMatrix(b"", "ans", layout_of(layer((4, 6), 3, 1.0)))
