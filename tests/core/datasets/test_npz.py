"""An `.npz` dataset is read exactly, and every kind of wrong one is refused with its array, row and reason."""

import io
import math
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from core.errors import EngineError
from core.recovery import chunks, inspect_dataset, load_dataset
from tests.core.dataset_cases import npy, npz_of, refused


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels")])
def test_nhwc_images_become_nchw_and_splits_are_honoured(save, images, labels, keys, compressed):
    split = np.array(["train"] * 30 + ["validation"] * 4 + ["test"] * 6)
    dataset = load_dataset(save(compressed, **{keys[0]: images, keys[1]: labels, "split": split}))
    assert (dataset.format, dataset.classes, dataset.image_shape) == ("npz", 4, (3, 12, 10))
    assert torch.equal(dataset.train.images, torch.from_numpy(images[:30].transpose(0, 3, 1, 2).copy()))
    assert torch.equal(dataset.val.labels, torch.tensor(labels[30:34]))
    assert torch.equal(dataset.test.labels, torch.tensor(labels[34:]))


def test_nchw_and_grey_images_keep_their_shape(save, images, labels):
    nchw = images.transpose(0, 3, 1, 2)
    split = np.array(["train"] * 20 + ["val"] * 10 + ["test"] * 10)
    assert torch.equal(load_dataset(save(x=nchw, y=labels, split=split)).train.images, torch.tensor(nchw[:20].copy()))
    grey = load_dataset(save(x=images[..., 0], y=labels[:, None], split=split))
    assert grey.image_shape == (1, 12, 10)
    assert torch.equal(grey.test.images[:, 0], torch.from_numpy(images[30:, :, :, 0].copy()))


def test_column_major_arrays_are_read_in_the_right_order(save, images, labels):
    split = np.array(["train"] * 20 + ["val"] * 10 + ["test"] * 10)
    dataset = load_dataset(save(x=np.asfortranarray(images), y=labels, split=split))
    assert torch.equal(dataset.train.images, torch.from_numpy(images[:20].transpose(0, 3, 1, 2).copy()))


def test_an_array_longer_than_one_chunk_is_streamed_whole(save, monkeypatch, images, labels):
    path = save(x=images, y=labels, split=np.array(["train"] * 20 + ["val"] * 10 + ["test"] * 10))
    monkeypatch.setattr("core.recovery.npz.CHUNK_BYTES", 1000)
    assert torch.equal(load_dataset(path).val.images, torch.from_numpy(images[20:30].transpose(0, 3, 1, 2).copy()))


def test_uint8_is_scaled_and_normalised_and_floats_are_taken_as_they_are(save, images, labels):
    normalization = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    dataset = load_dataset(save(x=images, y=labels), normalization=normalization)
    expected = (dataset.train.images.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2, 0.25, 0.3]
    ).view(1, 3, 1, 1)
    assert torch.allclose(dataset.prepare(dataset.train.images).double(), expected, atol=1e-6)
    halves = load_dataset(save(x=images, y=labels), scale=128)
    assert torch.equal(halves.prepare(halves.val.images), halves.val.images.float() / 128)
    floats = load_dataset(save(x=images.astype(np.float64) / 7, y=labels), normalization=normalization)
    assert floats.train.images.dtype == torch.float32
    assert torch.equal(floats.prepare(floats.train.images), floats.train.images)


def test_a_dataset_without_labels_is_unlabelled(save, images):
    dataset = load_dataset(save(x=images))
    assert not dataset.labelled and dataset.train.labels is None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (32, 4, 4)


def test_object_arrays_are_refused_and_never_unpickled(save, labels, tmp_path):
    class Trap:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "ran",))

    refused(save(x=np.array([Trap()] * 40, object), y=labels), "array `x`", "Python objects")
    assert not (tmp_path / "ran").exists()


def test_a_header_that_declares_more_than_the_member_holds_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 3, 32, 32)})
    with zipfile.ZipFile(tmp_path / "bomb", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1000))
    refused(tmp_path / "bomb", "array `x`", "declares 30,720,000,000 bytes")


def test_a_deflate_bomb_is_refused_before_it_is_inflated(save, labels, monkeypatch):
    path = save(True, x=np.zeros((40, 256, 256, 3), np.uint8), y=labels)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(chunks.Allowance.__init__, "__defaults__", (1_000_000,))
    refused(path, "larger than the limit of 1,000,000 bytes")


@pytest.mark.parametrize(
    ("descr", "words"),
    [
        ("<U0", ["array `x`", "no bytes", "<U0"]),
        ("|V0", ["array `x`", "no bytes"]),
        (("|u1", (12, 10)), ["array `x`", "compound", "array of its own"]),
        ([("pixels", "|u1")], ["array `x`", "compound", "pixels"]),
        ([("", "|V2000000000")], ["array `x`", "compound"]),
        ("|O", ["array `x`", "Python objects"]),
        ("<c8", ["array `x`", "complex64"]),
        ("<M8[ns]", ["array `x`", "datetime64"]),
        ("<f3", ["array `x`", "unknown type '<f3'"]),
        ("i4,i4", ["array `x`", "unknown type"]),
        (7, ["array `x`", "compound type 7"]),
    ],
)
def test_an_element_type_that_is_no_number_is_refused_whatever_its_size(tmp_path, descr, words):
    path = npz_of(tmp_path, x=npy(descr, (10**9, 12, 10)), y=npy("|u1", (40,), bytes(40)))
    refused(path, *words)


@pytest.mark.parametrize("array", ["y", "split"])
@pytest.mark.parametrize(
    "descr", ["<U0", "|S0", ("|u1", (2,)), [("a", "|u1"), ("b", "<U0")], "|O", "|V40", "<c8", "<m8[s]"]
)
def test_labels_and_splits_of_other_types_are_refused_by_name(tmp_path, array, descr):
    arrays = {"x": npy("|u1", (40, 2, 2), bytes(160)), "y": npy("|u1", (40,), bytes(range(40)))}
    refused(npz_of(tmp_path, **{**arrays, array: npy(descr, (40,))}), f"array `{array}`")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2**63, 2**63), ["declares the shape", "axes"]),
        ((10**4000,) * 2, ["array `x`"]),
        ((-4, 3, 3), ["declares the shape", "-4"]),
        ((40, True, 3), ["declares the shape"]),
        ([40, 3, 3], ["declares the shape"]),
        ((1,) * 40, ["declares the shape"]),
        ("(40, 3, 3)", ["declares the shape"]),
        ((), ["at least one row"]),
        ((40, 0, 3), ["at least one row"]),
    ],
)
def test_a_shape_that_no_array_has_is_refused(tmp_path, shape, words):
    refused(npz_of(tmp_path, x=npy("|u1", shape)), *words)


def test_a_long_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "long"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(b"\x93NUMPY\x02\x00" + (2**28).to_bytes(4, "little"))
        for _ in range(256):
            member.write(b" " * 2**20)
    tracemalloc.start()
    try:
        refused(path, "array `x`", "header of 268,435,456 bytes", "np.savez")
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_version_2_headers_are_read_like_version_1(tmp_path, images, labels):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, images, version=(2, 0))
    stored = io.BytesIO()
    np.save(stored, labels)
    dataset = load_dataset(npz_of(tmp_path, x=buffer.getvalue(), y=stored.getvalue()), seed=1)
    assert dataset.image_shape == (3, 12, 10) and dataset.classes == 4


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (40,",
        b"(" * 5000,
        b"-" * 9000 + b"1",
        b"{[]: 1}",
        b"[1, 2]",
        b"{'descr': '|u1', 'shape': (40, 3, 3)}",
        b"__import__('os').getcwd()",
        b"",
    ],
)
def test_a_header_that_is_no_header_is_refused(tmp_path, header):
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    refused(npz_of(tmp_path, x=member), "array `x`", "header that is not NumPy's")


@pytest.mark.parametrize(("version", "word"), [(b"\x03\x00", "version 3.0"), (b"\x09\x01", "version 9.1")])
def test_other_versions_of_the_format_are_refused(tmp_path, version, word):
    refused(npz_of(tmp_path, x=b"\x93NUMPY" + version + bytes(40)), "array `x`", word)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compression_that_numpy_does_not_use_is_refused(tmp_path, images, method):
    stored = io.BytesIO()
    np.save(stored, images)
    refused(npz_of(tmp_path, method, x=stored.getvalue()), "array `x`", f"zip method {method}", "np.savez")


def test_many_tiny_images_count_with_what_goes_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks.Allowance.__init__, "__defaults__", (1_000_000,))
    path = npz_of(tmp_path, x=npy("|u1", (200_000, 1, 1), bytes(200_000)))
    refused(path, "larger than the limit of 1,000,000 bytes")


def test_damage_anywhere_is_read_or_refused_and_never_another_error(tmp_path, save, images, labels):
    whole = save(x=images[:12, :3, :3], y=labels[:12], split=np.array(["train"] * 10 + ["val", "test"])).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = generator.integers(4, len(damaged), generator.integers(1, 4))
        damaged[places] = generator.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            load_dataset(path)
            outcomes["read"] += 1
        except EngineError as error:
            assert error.code == "dataset_invalid"
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_a_truncated_file_is_refused(save, images, labels):
    path = save(x=images, y=labels)
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "cannot be read")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"data": np.zeros((40, 8, 8), np.uint8)}, ["data", "`x` or `images`"]),
        ({"y": np.arange(39) % 4}, ["39 rows", "40"]),
        ({"y": np.arange(40) - 1}, ["array `y`, row 0", "-1"]),
        ({"y": np.arange(40) / 2}, ["array `y`, row 1", "0.5"]),
        ({"y": np.array(["cat", "dog"] * 20)}, ["array `y`", "integers"]),
        ({"y": np.eye(40)}, ["array `y`", "one-hot"]),
        ({"y": np.full(40, 3)}, ["Every label is 3"]),
        ({"x": np.zeros((40, 8, 8), np.int64)}, ["int64", "uint8"]),
        ({"x": np.zeros((40, 64), np.uint8)}, ["[N, 64]"]),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, ["at least one row"]),
        ({"x": np.where(np.arange(40)[:, None, None] == 17, np.nan, np.zeros((40, 8, 8)))}, ["row 17", "finite"]),
        ({"split": np.array(["train"] * 39 + ["holdout"])}, ["row 39", "holdout"]),
        ({"split": np.array(["test"] * 40)}, ["train split has 0 examples"]),
        ({"split": np.arange(40)}, ["array `split`"]),
    ],
)
def test_wrong_arrays_are_refused_by_name_and_row(save, arrays, words):
    good = {"x": np.zeros((40, 8, 8), np.uint8), "y": np.arange(40) % 4}
    if "data" in arrays:
        good.pop("x")
    refused(save(**{**good, **arrays}), *words)


def test_normalization_must_have_one_value_per_channel(save, images, labels):
    path = save(x=images, y=labels)
    for read in (load_dataset, inspect_dataset):
        refused(path, "1 means", "3 channel", read=read, normalization=((0.5,), (0.5,)))
        refused(path, "positive", read=read, normalization=((0.5,) * 3, (0.5, 0.5, 0.0)))
        refused(path, "means", "beyond", read=read, normalization=((math.nan,) * 3, (0.5,) * 3))
        for std in (math.nan, math.inf, 1e-30, -1.0):
            refused(path, "positive", read=read, normalization=((0.5,) * 3, (0.5, 0.5, std)))


@pytest.mark.parametrize("scale", [0, -1, 1e-320, 1e-30, 1e30, math.inf, math.nan])
def test_a_scale_that_leaves_nothing_of_the_images_is_refused(save, images, labels, scale):
    path = save(x=images, y=labels)
    for read in (load_dataset, inspect_dataset):
        refused(path, f"scale is {scale:g}", "0.001 to 1e+06", read=read, scale=scale)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_every_accepted_scale_gives_finite_inputs_and_statistics(save, images, labels, scale):
    path = save(x=images, y=labels)
    profile, dataset = inspect_dataset(path, scale=scale), load_dataset(path, scale=scale)
    assert profile.mean == pytest.approx((images / scale).mean(axis=(0, 1, 2)).tolist(), rel=0.05)
    inputs = dataset.prepare(dataset.train.images)
    assert inputs.isfinite().all() and inputs.std() > 0
