"""Every kind of picture that people store is read in one defined way or refused by name; nothing is decoded that is too large."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from core.errors import EngineError
from core.recovery.chunks import Allowance
from core.recovery.encoded_images import MAX_ENCODED_BYTES, Conversion, ImageDecoder


def encode(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(*encoded, conversion=None, threads=1) -> np.ndarray:
    places = [f"picture {index}" for index in range(len(encoded))]
    return np.concatenate(list(ImageDecoder(Allowance(), threads, conversion).decode(encoded, places)))


def refused(*encoded, words, **options):
    with pytest.raises(EngineError) as caught:
        decode(*encoded, **options)
    assert caught.value.code == "dataset_invalid"
    for word in words:
        assert word in caught.value.message


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


def png_of(width, height, *, depth=8, color=0, extra=b"") -> bytes:
    """A PNG by hand: what it declares, and as much content as is given."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(extra)) + chunk(b"IEND", b"")


class TestKinds:
    @pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
    def test_lossless_pictures_keep_every_pixel(self, pixels, kind, options):
        found = decode(encode(Image.fromarray(pixels), kind, **options))
        assert np.array_equal(found[0], pixels.transpose(2, 0, 1))

    def test_jpeg_is_what_pillow_decodes(self, pixels):
        data = encode(Image.fromarray(pixels), "JPEG")
        assert np.array_equal(decode(data)[0].transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(data))))

    def test_palettes_are_expanded(self, pixels):
        image = Image.fromarray(pixels).quantize(16)
        assert np.array_equal(decode(encode(image))[0].transpose(1, 2, 0), np.asarray(image.convert("RGB")))

    def test_transparency_is_dropped_and_hides_nothing(self, pixels):
        alpha = np.arange(63, dtype=np.uint8).reshape(9, 7, 1)
        image = Image.fromarray(np.concatenate([pixels, alpha], 2), "RGBA")
        assert np.array_equal(decode(encode(image))[0], pixels.transpose(2, 0, 1))
        grey = Image.merge("LA", [Image.fromarray(pixels[..., 0]), Image.fromarray(alpha[..., 0])])
        assert np.array_equal(decode(encode(grey))[0], pixels[None, ..., 0])

    def test_cmyk_becomes_rgb(self, pixels):
        data = encode(Image.fromarray(pixels).convert("CMYK"), "JPEG")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decode(data)[0].transpose(1, 2, 0), expected)

    def test_one_bit_is_black_and_white(self):
        image = Image.fromarray(np.eye(8, dtype=bool))
        assert np.array_equal(decode(encode(image))[0, 0], 255 * np.eye(8, dtype=np.uint8))

    def test_the_note_on_how_to_turn_a_photograph_is_left_alone(self, pixels):
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[0x0112] = 6
        turned, plain = encode(image, "JPEG", exif=exif), encode(image, "JPEG")
        assert decode(turned).shape == (1, 3, 9, 7)
        assert np.array_equal(decode(turned), decode(plain))

    def test_further_pictures_inside_a_photograph_are_left_alone(self, pixels):
        image = Image.fromarray(pixels)
        data = encode(image, "MPO", save_all=True, append_images=[Image.fromarray(255 - pixels)])
        assert np.array_equal(decode(data), decode(encode(image, "JPEG")))

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_animations_are_refused(self, pixels, kind):
        frames = [Image.fromarray(255 - pixels), Image.fromarray(pixels[::-1].copy())]
        data = encode(Image.fromarray(pixels), kind, save_all=True, append_images=frames)
        refused(data, words=["picture 0", "animation of 3 frames", "one frame"])

    def test_more_than_8_bits_are_refused_in_grey_and_in_colour(self, pixels):
        grey = encode(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257))
        refused(grey, words=["picture 0", "more than 8 bits", "Convert it"])
        colour = png_of(2, 2, depth=16, color=2, extra=bytes(2 * 13))
        refused(colour, words=["more than 8 bits"], conversion=Conversion(color="rgb"))

    @pytest.mark.parametrize("kind", ["GIF", "TIFF", "ICO", "PPM", "JPEG2000"])
    def test_other_formats_are_refused(self, pixels, kind):
        image = Image.fromarray(pixels).resize((32, 32))
        refused(encode(image), encode(image, kind), words=["picture 1", "not a readable PNG, JPEG, WEBP or BMP"])


class TestBounds:
    def test_a_bomb_of_pixels_is_refused_by_its_header(self):
        refused(png_of(30_000, 30_000, extra=b"\0"), words=["picture 0"])
        refused(png_of(5000, 4000, extra=b"\0"), words=["4000×5000", "16,777,216 pixels", "Scale it down"])

    def test_a_large_encoded_image_is_refused_unread(self):
        refused(b"\x89PNG\r\n\x1a\n" + bytes(MAX_ENCODED_BYTES), words=["encoded image has", "limit"])

    def test_blocks_stay_small_whatever_is_asked_for_at_once(self, monkeypatch):
        monkeypatch.setattr("core.recovery.encoded_images.CHUNK_BYTES", 1000)
        data = encode(Image.new("RGB", (10, 10)))
        blocks = list(ImageDecoder(Allowance(), 1).decode([data] * 20, [str(i) for i in range(20)]))
        assert [len(block) for block in blocks] == [3] * 6 + [2]

    def test_the_whole_dataset_has_an_allowance(self):
        decoder = ImageDecoder(Allowance(1000), 1)
        data = encode(Image.new("RGB", (10, 10)))
        with pytest.raises(EngineError, match="larger than the limit of 1,000 bytes"):
            list(decoder.decode([data] * 4, list("abcd")))

    def test_a_wrong_size_is_told_before_anything_is_decoded(self, monkeypatch):
        monkeypatch.setattr("core.recovery.encoded_images._pixels", lambda *_: pytest.fail("decoded"))
        refused(encode(Image.new("L", (4, 4))), encode(Image.new("L", (4, 5))), words=["picture 1", "5×4", "4×4"])

    @pytest.mark.parametrize("cut", [30, 60, 100])
    def test_pictures_cut_short_are_refused(self, pixels, cut):
        whole = encode(Image.fromarray(pixels), "PNG")
        refused(whole, whole[:-cut], words=["picture 1"])

    def test_damage_anywhere_is_decoded_or_refused_and_never_another_error(self, pixels):
        generator = np.random.default_rng(0)
        for kind in ("PNG", "JPEG", "WEBP", "BMP"):
            whole = np.frombuffer(encode(Image.fromarray(pixels), kind), np.uint8)
            for _ in range(100):
                damaged = whole.copy()
                places = generator.integers(0, len(damaged), 3)
                damaged[places] = generator.integers(0, 256, 3)
                try:
                    decode(damaged.tobytes())
                except EngineError as error:
                    assert error.code == "dataset_invalid"
