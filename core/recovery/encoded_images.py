"""Encoded images (PNG, JPEG, WebP, BMP) of one dataset into uint8 arrays of one shape.

Only four decoders of Pillow can be reached, an image's size is checked before its pixels are decoded, and every failure
names the image. Nothing is converted unless a `Conversion` asks for it; what is read is what torchvision's image folders
read: palettes are expanded, transparency is dropped, CMYK becomes RGB, and a camera's note on how to turn the picture
(EXIF orientation) is left alone. Animations and 16-bit channels are refused, as half of them would be dropped silently.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from core.recovery.chunks import CHUNK_BYTES, Allowance, invalid_dataset

_DECODERS = ("PNG", "JPEG", "WEBP", "BMP")
_ANIMATED = ("PNG", "WEBP")
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr", "RGBX")
_DEEP_MODES = ("I;16", "I;16B", "I", "F")
_PILLOW_MODES = {"grey": "L", "rgb": "RGB"}
MAX_PIXELS = 4096 * 4096
MAX_SIDE = 4096
MAX_ENCODED_BYTES = 64 * 2**20
# Below this size decoding is mostly Python, and threads only contend for the interpreter.
_PIXELS_WORTH_A_THREAD = 128 * 128
# Where a PNG says how many bits a channel has. Pillow reads 16-bit colour as 8-bit without a word.
_PNG_DEPTH_AT = 24


@dataclass(frozen=True)
class Conversion:
    """What is to be done to encoded images. Raises EngineError("dataset_invalid") for what cannot be.

    size: (height, width) of all images: each is scaled (bilinear, antialiased) until it covers that, and what stands out
    is cut off evenly. color: "grey" or "rgb".
    """

    size: Sequence[int] | None = None
    color: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or not all(1 <= side <= MAX_SIDE for side in self.size)):
            raise invalid_dataset(
                f"convert.size is {list(self.size)[:8]}; give [height, width], each from 1 to {MAX_SIDE}."
            )
        if self.color not in (None, *_PILLOW_MODES):
            raise invalid_dataset(f"convert.color is {self.color!r}; use grey or rgb.")

    def __bool__(self) -> bool:
        return self.size is not None or self.color is not None


class ImageDecoder:
    """Decodes the images of one dataset; the first one sets the shape that all others must have."""

    def __init__(self, allowance: Allowance, threads: int, conversion: Conversion | None = None) -> None:
        self._allowance = allowance
        self._threads = threads
        self._conversion = conversion or Conversion()
        self._first: tuple[tuple[int, int, int], str] | None = None

    def decode(self, encoded: Sequence[bytes | None], places: Sequence[str]) -> Iterator[np.ndarray]:
        """Consecutive blocks [n, C, H, W] uint8 of about CHUNK_BYTES. places: what each image is called in messages.

        Raises EngineError("dataset_invalid").
        """
        start = 0
        while start < len(encoded):
            images = [_open(encoded[start], places[start])]
            shape = self._shape(images[0], places[start])
            image_bytes = shape[0] * shape[1] * shape[2]
            end = min(len(encoded), start + max(1, CHUNK_BYTES // image_bytes))
            for data, place in zip(encoded[start + 1 : end], places[start + 1 : end], strict=True):
                images.append(_open(data, place))
                self._shape(images[-1], place)
            self._allowance.take(len(images) * image_bytes, places[start])
            yield self._pixels(images, shape, places[start:end])
            start = end

    def _shape(self, image: Image.Image, place: str) -> tuple[int, int, int]:
        """The shape [C, H, W] that an image gets; it must be the first one's."""
        shape = (self._channels(image), *(self._conversion.size or (image.height, image.width)))
        if self._first is None:
            self._first = shape, place
        first, first_place = self._first
        if shape[1:] != first[1:]:
            raise invalid_dataset(
                f"{place}: the image is {image.height}×{image.width} and the first one ({first_place}) is "
                f"{first[1]}×{first[2]}. Resize all images to one size, or upload the dataset with convert "
                f'{{"size": [{first[1]}, {first[2]}]}}.'
            )
        if shape[0] != first[0]:
            names = {1: "grey", 3: "in colour"}
            raise invalid_dataset(
                f"{place}: the image is {names[shape[0]]} and the first one ({first_place}) is {names[first[0]]}. Store all "
                'images alike, or upload the dataset with convert {"color": "rgb"} or {"color": "grey"}, whichever the '
                "network was trained on."
            )
        return shape

    def _channels(self, image: Image.Image) -> int:
        if self._conversion.color is not None:
            return 1 if self._conversion.color == "grey" else 3
        return 1 if image.mode in _GREY_MODES else 3

    def _pixels(self, images: list[Image.Image], shape: tuple[int, int, int], places: Sequence[str]) -> np.ndarray:
        decoded = np.empty((len(images), *shape), np.uint8)

        def place(index: int) -> None:
            decoded[index] = _pixels(images[index], shape, places[index])

        pixels = max(images[0].width * images[0].height, shape[1] * shape[2])
        if pixels < _PIXELS_WORTH_A_THREAD or self._threads == 1:
            for index in range(len(images)):
                place(index)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(place, range(len(images))))
        return decoded


def _open(data: bytes | None, place: str) -> Image.Image:
    """Read an image's header only, and refuse what its pixels need not be decoded for."""
    if not data:
        raise invalid_dataset(f"{place}: the image is empty. Leave it out, or upload the dataset again.")
    if len(data) > MAX_ENCODED_BYTES:
        raise invalid_dataset(
            f"{place}: the encoded image has {len(data):,} bytes; the limit is {MAX_ENCODED_BYTES:,}."
        )
    try:
        with warnings.catch_warnings():
            # Our own limit, below, comes before Pillow's warning about large images.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_DECODERS)
        # A photograph may carry further pictures (MPO); its first is the photograph.
        frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise invalid_dataset(
            f"{place}: the image is not a readable {', '.join(_DECODERS[:-1])} or {_DECODERS[-1]} file "
            f"({_reason(error)}). Convert it, or leave it out."
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise invalid_dataset(
            f"{place}: the image is {image.height}×{image.width}; the limit is {MAX_PIXELS:,} pixels. Scale it down."
        )
    if frames != 1:
        raise invalid_dataset(f"{place}: the image is an animation of {frames} frames. Store one frame as an image.")
    if image.mode in _DEEP_MODES or (image.format == "PNG" and data[_PNG_DEPTH_AT] == 16):
        raise invalid_dataset(f"{place}: the image has more than 8 bits per channel. Convert it to 8 bits.")
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise invalid_dataset(
            f"{place}: images of mode {image.mode} are not supported. Convert it to 8-bit grey or RGB."
        )
    return image


def _pixels(image: Image.Image, shape: tuple[int, int, int], place: str) -> np.ndarray:
    """The decoded image as [C, H, W]."""
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        converted = image if image.mode == mode else image.convert(mode)
        if converted.size != (width, height):
            converted = _cover(converted, height, width)
        array = np.asarray(converted)
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError) as error:
        raise invalid_dataset(
            f"{place}: the image is corrupt or cut short ({_reason(error)}). Replace it, or leave it out."
        ) from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scaled to cover height×width, the middle kept."""
    factor = max(height / image.height, width / image.width)
    kept_width, kept_height = min(image.width, width / factor), min(image.height, height / factor)
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    box = (left, top, left + kept_width, top + kept_height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _reason(error: BaseException) -> str:
    # Pillow's text for an unknown file ends in the address of a buffer object.
    return str(error).split("<_io")[0].strip().rstrip(":")[:120] or type(error).__name__
