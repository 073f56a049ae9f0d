"""Encoded images (PNG, JPEG, WebP, BMP) of one dataset into uint8 arrays of one shape.

Only four decoders of Pillow can be reached, an image's size is checked before its pixels are decoded, and every failure
names the row.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from core.recovery.chunks import Allowance, invalid_dataset

_DECODERS = ("PNG", "JPEG", "WEBP", "BMP")
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr", "RGBX")
MAX_PIXELS = 4096 * 4096
MAX_ENCODED_BYTES = 64 * 2**20
# Below this size decoding is mostly Python, and threads only contend for the interpreter.
_PIXELS_WORTH_A_THREAD = 128 * 128


class ImageDecoder:
    """Decodes the images of one dataset; the first batch sets the shape that all others must have.

    Grey images stay one channel; if a colour image is in the first batch, all become RGB (transparency is dropped).
    """

    def __init__(self, allowance: Allowance, threads: int) -> None:
        self._allowance = allowance
        self._threads = threads
        self._shape: tuple[int, int, int] | None = None

    def decode(self, encoded: Sequence[bytes | None], source: str, first_row: int) -> np.ndarray:
        """[n, C, H, W] uint8. Raises EngineError("dataset_invalid") naming the row."""
        where = [f"{source}, row {first_row + index}" for index in range(len(encoded))]
        images = [_open(data, row) for data, row in zip(encoded, where, strict=True)]
        if self._shape is None:
            channels = 3 if any(image.mode in _COLOUR_MODES for image in images) else 1
            self._shape = (channels, images[0].height, images[0].width)
        for image, row in zip(images, where, strict=True):
            _require_shape(image, self._shape, row)
        pixels_per_image = self._shape[1] * self._shape[2]
        self._allowance.take(len(images) * self._shape[0] * pixels_per_image, source)
        decoded = np.empty((len(images), *self._shape), np.uint8)

        def place(index: int) -> None:
            decoded[index] = _pixels(images[index], self._shape[0], where[index])

        if pixels_per_image < _PIXELS_WORTH_A_THREAD or self._threads == 1:
            for index in range(len(images)):
                place(index)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(place, range(len(images))))
        return decoded


def _open(data: bytes | None, where: str) -> Image.Image:
    """Read an image's header only."""
    if not data:
        raise invalid_dataset(f"{where}: the image is empty.")
    if len(data) > MAX_ENCODED_BYTES:
        raise invalid_dataset(
            f"{where}: the encoded image has {len(data):,} bytes; the limit is {MAX_ENCODED_BYTES:,}."
        )
    try:
        return Image.open(io.BytesIO(data), formats=_DECODERS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise invalid_dataset(
            f"{where}: the image is not a readable {', '.join(_DECODERS[:-1])} or {_DECODERS[-1]} file ({_reason(error)})."
        ) from error


def _require_shape(image: Image.Image, shape: tuple[int, int, int], where: str) -> None:
    channels, height, width = shape
    if image.width * image.height > MAX_PIXELS:
        raise invalid_dataset(
            f"{where}: the image is {image.height}×{image.width}; the limit is {MAX_PIXELS:,} pixels."
        )
    if (image.height, image.width) != (height, width):
        raise invalid_dataset(
            f"{where}: the image is {image.height}×{image.width} and the first one is {height}×{width}; "
            "resize all images to one size."
        )
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise invalid_dataset(
            f"{where}: images of mode {image.mode} are not supported; store 8-bit grey or RGB images."
        )
    if channels == 1 and image.mode not in _GREY_MODES:
        raise invalid_dataset(
            f"{where}: the image is in colour and the first ones are grey; store all images with the same channels."
        )


def _pixels(image: Image.Image, channels: int, where: str) -> np.ndarray:
    """The decoded image as [C, H, W]."""
    mode = "L" if channels == 1 else "RGB"
    try:
        array = np.asarray(image if image.mode == mode else image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise invalid_dataset(f"{where}: the image is corrupt ({_reason(error)}).") from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _reason(error: BaseException) -> str:
    # Pillow's text for an unknown file ends in the address of a buffer object.
    return str(error).split("<_io")[0].strip().rstrip(":")[:120] or type(error).__name__
