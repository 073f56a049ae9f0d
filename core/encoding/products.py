"""Products with a matrix that stays compressed: y = xᵀW, batched, and convolution by tiles of image patches.

Source: Marinò, Ghidoli, Frasca, Malchiodi (arXiv 2007.07967, `dot_HAC`, `dot_sHAC`; arXiv 2108.12704). W is never whole:
columns are decoded a tile at a time and used at once. With numba (the extra `fast`) decoding and multiplying are one loop
that holds at most a tile's values; without it a tile is decoded by numpy and multiplied. Threads share the columns.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from core.encoding import fast, fast_products, formats
from core.encoding.errors import PwtError, PwtFault
from core.encoding.fast_vector import WindowValues, product_shac_vector
from core.encoding.hac import Decoder as HacDecoder
from core.encoding.hac import stream_of_columns
from core.encoding.im import Decoder as ImDecoder
from core.encoding.layout import Layout, layout_of
from core.encoding.quantized import QuantizedTensor
from core.encoding.shac import Decoder as ShacDecoder

PRODUCT_FORMATS = ("hac", "shac", "im")
TILE_BYTES = 1 << 20
_DECODED_BYTES = 24  # what numpy holds of an entry while a tile is decoded: symbol, place, index, value
_CHECKED_BYTES = 64  # and while the survivors of a column are looked at


class CompressedMatrix:
    """A layer's weight [outputs, inputs, …] in the bytes of its coding.

    payload: as `formats.encode` makes it in one of PRODUCT_FORMATS. Raises PwtError where it is damaged: sizes, and all of
    sHAC, when the matrix is made; the other streams when they are decoded.
    """

    def __init__(self, payload: bytes | memoryview, format: str, layout: Layout) -> None:
        if format not in PRODUCT_FORMATS:
            raise ValueError(f"no products on {format!r}; there are {', '.join(PRODUCT_FORMATS)}")
        self.format, self.layout, self.stored_bytes = format, layout, len(payload)
        self._codebook, self._decoder = formats.open_payload(payload, format, layout)
        symbols = layout.entries
        if isinstance(self._decoder, ShacDecoder):
            self._decoder.check(max(1, TILE_BYTES // max(1, _CHECKED_BYTES * layout.rows)))
            symbols = len(self._decoder.placed(0, layout.columns)[1])
        # Compiled loops look nothing up before they read it.
        if symbols and not isinstance(self._decoder, ImDecoder) and len(self._decoder.code.order) == 0:
            raise PwtError(PwtFault.bad_code, format, "symbols to decode, and no codeword")

    @cached_property
    def _windows(self) -> WindowValues:
        return WindowValues.of(self._decoder.code, self._codebook)

    @classmethod
    def of(cls, tensor: QuantizedTensor, format: str | None = None) -> CompressedMatrix:
        """Encoded in `format`, or in the smallest of those that can be multiplied."""
        if format is None:
            format = min(PRODUCT_FORMATS, key=lambda name: formats.encoded_bytes(tensor, name))
        return cls(formats.encode(tensor, format)[0], format, layout_of(tensor))

    def multiply(self, x: np.ndarray, *, threads: int = 1, tile_bytes: int = TILE_BYTES) -> np.ndarray:
        """x: float32 [batch, n] or [n]. Gives x·W, float32 [batch, m] or [m].

        tile_bytes: what a thread may hold of decoded columns, or of the stream where columns are not decoded.
        """
        batch = np.ascontiguousarray(np.atleast_2d(x), np.float32)
        if batch.ndim != 2 or batch.shape[1] != self.layout.rows:
            raise ValueError(f"x has the shape {np.shape(x)}; the matrix has {self.layout.rows} rows")
        product = self._columns_product(batch, 0, self.layout.columns, threads, tile_bytes)
        return product.T[0] if np.ndim(x) == 1 else np.ascontiguousarray(product.T)

    def convolve(
        self,
        images: np.ndarray,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        threads: int = 1,
        tile_bytes: int = TILE_BYTES,
    ) -> np.ndarray:
        """images: float32 [batch, channels, height, width]; the weight is [outputs, channels/groups, kh, kw].

        Gives float32 [batch, outputs, height', width']. Patches are gathered for as many output positions as `tile_bytes`
        hold, at least one row of one image.
        """
        outputs, depth, height, width = self._kernel_shape()
        if images.ndim != 4 or images.shape[1] != depth * groups or outputs % groups:
            raise ValueError(f"images {images.shape} do not fit a weight of {self.layout.shape} in {groups} groups")
        across = [(0, 0), (0, 0), (padding[0], padding[0]), (padding[1], padding[1])]
        spans = (dilation[0] * (height - 1) + 1, dilation[1] * (width - 1) + 1)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(images.astype(np.float32), across), spans, (2, 3))
        windows = windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
        rows_out, columns_out = windows.shape[2:4]
        found = np.empty((len(images), outputs, rows_out, columns_out), np.float32)
        rows_at_once = max(1, tile_bytes // max(1, 4 * columns_out * self.layout.rows))
        share = outputs // groups
        for image in range(len(images)):
            for top in range(0, rows_out, rows_at_once):
                for group in range(groups):
                    part = windows[image, group * depth : (group + 1) * depth, top : top + rows_at_once]
                    patches = np.ascontiguousarray(part.transpose(1, 2, 0, 3, 4)).reshape(-1, self.layout.rows)
                    first = group * share
                    product = self._columns_product(patches, first, first + share, threads, tile_bytes)
                    found[image, first : first + share, top : top + rows_at_once] = product.reshape(
                        share, -1, columns_out
                    )
        return found

    def _kernel_shape(self) -> tuple[int, int, int, int]:
        if len(self.layout.shape) != 4:
            raise ValueError(f"a weight of {self.layout.shape} is no kernel of a two-dimensional convolution")
        outputs, depth, height, width = self.layout.shape
        return outputs, depth, height, width

    def _columns_product(self, batch: np.ndarray, start: int, stop: int, threads: int, tile_bytes: int) -> np.ndarray:
        """batch [b, n] times the columns [start, stop): [columns, b]."""
        product = np.zeros((stop - start, len(batch)), np.float32)
        if product.size == 0 or self.layout.rows == 0:
            return product
        compiled = fast.worthwhile(self.layout.entries)
        transposed = np.ascontiguousarray(batch.T)
        step = self._tile_columns(start, stop, threads, tile_bytes, compiled)
        tiles = [(first, min(first + step, stop)) for first in range(start, stop, step)]

        def run(tile: tuple[int, int]) -> None:
            out = product[tile[0] - start : tile[1] - start]
            if compiled:
                self._fused(transposed, tile, out)
            else:
                self._tile_by_tile(transposed, tile, out)

        if threads == 1 or len(tiles) == 1:
            for tile in tiles:
                run(tile)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, tiles))
        return product

    def _tile_columns(self, start: int, stop: int, threads: int, tile_bytes: int, compiled: bool) -> int:
        """Columns at a time: what the budget holds, and no more than an even share of a thread."""
        per_column = 3 * self.stored_bytes / self.layout.columns if compiled else _DECODED_BYTES * self.layout.rows
        return int(max(1, min(tile_bytes / per_column, -(-(stop - start) // threads))))

    def _tile_by_tile(self, transposed: np.ndarray, tile: tuple[int, int], out: np.ndarray) -> None:
        if isinstance(self._decoder, ShacDecoder):
            counts, rows, indices = self._decoder.survivors(*tile)
            begins = np.concatenate([[0], np.cumsum(counts)])
            out[:] = csr_array((self._codebook[indices], rows, begins), (len(out), len(transposed))) @ transposed
        else:
            np.matmul(self._codebook[self._decoder.columns(*tile)], transposed, out=out)

    def _fused(self, transposed: np.ndarray, tile: tuple[int, int], out: np.ndarray) -> None:
        start, stop = tile
        decoder = self._decoder
        if isinstance(decoder, ImDecoder):
            words, first = decoder.words(start, stop)
            if not fast_products.product_im(words, first, decoder.width, self._codebook, transposed, out):
                raise PwtError(PwtFault.bad_index, "im", "an index is not below the levels")
            return
        words, ends = stream_of_columns(decoder.stream, decoder.ends, start, stop)
        if isinstance(decoder, HacDecoder):
            complete = fast_products.product_hac(words, ends, decoder.code.tables, self._codebook, transposed, out)
        elif transposed.shape[1] == 1:
            code, vectors = decoder.code, (transposed[:, 0], out[:, 0])
            complete = product_shac_vector(
                words, ends, *decoder.placed(start, stop), code, self._codebook, self._windows, *vectors
            )
        else:
            counts, rows = decoder.placed(start, stop)
            complete = fast_products.product_shac(
                words, ends, counts, rows, decoder.code.tables, self._codebook, transposed, out
            )
        if not complete:
            raise PwtError(PwtFault.bad_stream, self.format, "a column does not end where it must")
