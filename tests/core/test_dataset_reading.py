"""Datasets of every layout are read exactly, and every kind of wrong one is refused with its file, row and reason."""

import io
import math
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from core.errors import EngineError
from core.recovery import Conversion, chunks, inspect_dataset, load_dataset
from core.recovery.chunks import TEST, TRAIN, VAL
from core.recovery.splits import complete_splits


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 12, 10, 3), np.uint8)


@pytest.fixture
def labels():
    return np.arange(40) % 4


@pytest.fixture
def save(tmp_path):
    """Save arrays as an .npz file and give its path."""

    def _save(compressed=False, **arrays):
        path = tmp_path / "data.bin"  # the name says nothing: layouts are recognised by content
        with path.open("wb") as file:
            (np.savez_compressed if compressed else np.savez)(file, **arrays)
        return path

    return _save


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def shard(images, labels, *, struct=False, **columns):
    """A Parquet file in the Hugging Face layout, as bytes."""
    encoded = [image if isinstance(image, bytes) else encode(image) for image in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    image_column = pa.array([{"bytes": data, "path": None} for data in encoded] if struct else encoded, kind)
    table = {"image": image_column, "name": pa.array(["x"] * len(encoded))}
    if labels is not None:
        table["label"] = pa.array(labels)
    buffer = io.BytesIO()
    pq.write_table(pa.table({**table, **columns}), buffer)
    return buffer.getvalue()


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def npy(descr, shape, data=b""):
    """An `.npy` member with any header."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def npz_of(folder, method=zipfile.ZIP_STORED, **members):
    """An `.npz` file of raw members."""
    path = folder / "made.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def refused(path, *words, read=load_dataset, **options):
    with pytest.raises(EngineError) as caught:
        read(path, **options)
    assert caught.value.code == "dataset_invalid"
    for word in words:
        assert word in caught.value.message
    return caught.value.message


class TestNpz:
    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels")])
    def test_nhwc_images_become_nchw_and_splits_are_honoured(self, save, images, labels, keys, compressed):
        split = np.array(["train"] * 30 + ["validation"] * 4 + ["test"] * 6)
        dataset = load_dataset(save(compressed, **{keys[0]: images, keys[1]: labels, "split": split}))
        assert (dataset.format, dataset.classes, dataset.image_shape) == ("npz", 4, (3, 12, 10))
        assert torch.equal(dataset.train.images, torch.from_numpy(images[:30].transpose(0, 3, 1, 2).copy()))
        assert torch.equal(dataset.val.labels, torch.tensor(labels[30:34]))
        assert torch.equal(dataset.test.labels, torch.tensor(labels[34:]))

    def test_nchw_and_grey_images_keep_their_shape(self, save, images, labels):
        nchw = images.transpose(0, 3, 1, 2)
        split = np.array(["train"] * 20 + ["val"] * 10 + ["test"] * 10)
        assert torch.equal(
            load_dataset(save(x=nchw, y=labels, split=split)).train.images, torch.tensor(nchw[:20].copy())
        )
        grey = load_dataset(save(x=images[..., 0], y=labels[:, None], split=split))
        assert grey.image_shape == (1, 12, 10)
        assert torch.equal(grey.test.images[:, 0], torch.from_numpy(images[30:, :, :, 0].copy()))

    def test_column_major_arrays_are_read_in_the_right_order(self, save, images, labels):
        split = np.array(["train"] * 20 + ["val"] * 10 + ["test"] * 10)
        dataset = load_dataset(save(x=np.asfortranarray(images), y=labels, split=split))
        assert torch.equal(dataset.train.images, torch.from_numpy(images[:20].transpose(0, 3, 1, 2).copy()))

    def test_an_array_longer_than_one_chunk_is_streamed_whole(self, save, monkeypatch, images, labels):
        path = save(x=images, y=labels, split=np.array(["train"] * 20 + ["val"] * 10 + ["test"] * 10))
        monkeypatch.setattr("core.recovery.npz.CHUNK_BYTES", 1000)
        assert torch.equal(load_dataset(path).val.images, torch.from_numpy(images[20:30].transpose(0, 3, 1, 2).copy()))

    def test_uint8_is_scaled_and_normalised_and_floats_are_taken_as_they_are(self, save, images, labels):
        normalization = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
        dataset = load_dataset(save(x=images, y=labels), normalization=normalization)
        expected = (
            dataset.train.images.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
        ) / torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
        assert torch.allclose(dataset.prepare(dataset.train.images).double(), expected, atol=1e-6)
        halves = load_dataset(save(x=images, y=labels), scale=128)
        assert torch.equal(halves.prepare(halves.val.images), halves.val.images.float() / 128)
        floats = load_dataset(save(x=images.astype(np.float64) / 7, y=labels), normalization=normalization)
        assert floats.train.images.dtype == torch.float32
        assert torch.equal(floats.prepare(floats.train.images), floats.train.images)

    def test_a_dataset_without_labels_is_unlabelled(self, save, images):
        dataset = load_dataset(save(x=images))
        assert not dataset.labelled and dataset.train.labels is None
        assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (32, 4, 4)

    def test_object_arrays_are_refused_and_never_unpickled(self, save, labels, tmp_path):
        class Trap:
            def __reduce__(self):
                return (type(tmp_path).touch, (tmp_path / "ran",))

        refused(save(x=np.array([Trap()] * 40, object), y=labels), "array `x`", "Python objects")
        assert not (tmp_path / "ran").exists()

    def test_a_header_that_declares_more_than_the_member_holds_is_refused(self, tmp_path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 3, 32, 32)}
        )
        with zipfile.ZipFile(tmp_path / "bomb", "w") as archive:
            archive.writestr("x.npy", header.getvalue() + bytes(1000))
        refused(tmp_path / "bomb", "array `x`", "declares 30,720,000,000 bytes")

    def test_a_deflate_bomb_is_refused_before_it_is_inflated(self, save, labels, monkeypatch):
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
    def test_an_element_type_that_is_no_number_is_refused_whatever_its_size(self, tmp_path, descr, words):
        path = npz_of(tmp_path, x=npy(descr, (10**9, 12, 10)), y=npy("|u1", (40,), bytes(40)))
        refused(path, *words)

    @pytest.mark.parametrize("array", ["y", "split"])
    @pytest.mark.parametrize(
        "descr", ["<U0", "|S0", ("|u1", (2,)), [("a", "|u1"), ("b", "<U0")], "|O", "|V40", "<c8", "<m8[s]"]
    )
    def test_labels_and_splits_of_other_types_are_refused_by_name(self, tmp_path, array, descr):
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
    def test_a_shape_that_no_array_has_is_refused(self, tmp_path, shape, words):
        refused(npz_of(tmp_path, x=npy("|u1", shape)), *words)

    def test_a_long_header_is_refused_before_it_is_read(self, tmp_path):
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

    def test_version_2_headers_are_read_like_version_1(self, tmp_path, images, labels):
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
    def test_a_header_that_is_no_header_is_refused(self, tmp_path, header):
        member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        refused(npz_of(tmp_path, x=member), "array `x`", "header that is not NumPy's")

    @pytest.mark.parametrize(("version", "word"), [(b"\x03\x00", "version 3.0"), (b"\x09\x01", "version 9.1")])
    def test_other_versions_of_the_format_are_refused(self, tmp_path, version, word):
        refused(npz_of(tmp_path, x=b"\x93NUMPY" + version + bytes(40)), "array `x`", word)

    @pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    def test_compression_that_numpy_does_not_use_is_refused(self, tmp_path, images, method):
        stored = io.BytesIO()
        np.save(stored, images)
        refused(npz_of(tmp_path, method, x=stored.getvalue()), "array `x`", f"zip method {method}", "np.savez")

    def test_many_tiny_images_count_with_what_goes_beside_them(self, tmp_path, monkeypatch):
        monkeypatch.setattr(chunks.Allowance.__init__, "__defaults__", (1_000_000,))
        path = npz_of(tmp_path, x=npy("|u1", (200_000, 1, 1), bytes(200_000)))
        refused(path, "larger than the limit of 1,000,000 bytes")

    def test_damage_anywhere_is_read_or_refused_and_never_another_error(self, tmp_path, save, images, labels):
        whole = save(
            x=images[:12, :3, :3], y=labels[:12], split=np.array(["train"] * 10 + ["val", "test"])
        ).read_bytes()
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

    def test_a_truncated_file_is_refused(self, save, images, labels):
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
    def test_wrong_arrays_are_refused_by_name_and_row(self, save, arrays, words):
        good = {"x": np.zeros((40, 8, 8), np.uint8), "y": np.arange(40) % 4}
        if "data" in arrays:
            good.pop("x")
        refused(save(**{**good, **arrays}), *words)

    def test_normalization_must_have_one_value_per_channel(self, save, images, labels):
        path = save(x=images, y=labels)
        for read in (load_dataset, inspect_dataset):
            refused(path, "1 means", "3 channel", read=read, normalization=((0.5,), (0.5,)))
            refused(path, "positive", read=read, normalization=((0.5,) * 3, (0.5, 0.5, 0.0)))
            refused(path, "means", "beyond", read=read, normalization=((math.nan,) * 3, (0.5,) * 3))
            for std in (math.nan, math.inf, 1e-30, -1.0):
                refused(path, "positive", read=read, normalization=((0.5,) * 3, (0.5, 0.5, std)))

    @pytest.mark.parametrize("scale", [0, -1, 1e-320, 1e-30, 1e30, math.inf, math.nan])
    def test_a_scale_that_leaves_nothing_of_the_images_is_refused(self, save, images, labels, scale):
        path = save(x=images, y=labels)
        for read in (load_dataset, inspect_dataset):
            refused(path, f"scale is {scale:g}", "0.001 to 1e+06", read=read, scale=scale)

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
    def test_every_accepted_scale_gives_finite_inputs_and_statistics(self, save, images, labels, scale):
        path = save(x=images, y=labels)
        profile, dataset = inspect_dataset(path, scale=scale), load_dataset(path, scale=scale)
        assert profile.mean == pytest.approx((images / scale).mean(axis=(0, 1, 2)).tolist(), rel=0.05)
        inputs = dataset.prepare(dataset.train.images)
        assert inputs.isfinite().all() and inputs.std() > 0


class TestParquet:
    @pytest.mark.parametrize("struct", [False, True])
    @pytest.mark.parametrize("mode", ["w", "w:gz"])
    def test_shards_in_a_tar_give_their_splits(self, tmp_path, images, labels, mode, struct):
        members = {
            "README.md": b"# data",
            "data/train-00000-of-00002.parquet": shard(images[:16], labels[:16], struct=struct),
            "data/train-00001-of-00002.parquet": shard(images[16:30], labels[16:30], struct=struct),
            "data/validation-00000-of-00001.parquet": shard(images[30:34], labels[30:34], struct=struct),
            "plain_text/test/0000.parquet": shard(images[34:], labels[34:], struct=struct),
        }
        dataset = load_dataset(tar_of(tmp_path / "data", members, mode))
        assert (dataset.format, dataset.classes) == ("parquet_tar", 4)
        nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        assert torch.equal(dataset.train.images, nchw[:30])
        assert torch.equal(dataset.val.images, nchw[30:34])
        assert torch.equal(dataset.test.images, nchw[34:])
        assert dataset.test.labels.tolist() == labels[34:].tolist()

    def test_a_single_file_with_a_split_column(self, tmp_path, images, labels):
        names = ["train"] * 28 + ["val"] * 6 + ["test"] * 6
        (tmp_path / "one").write_bytes(shard(images, labels, split=pa.array(names)))
        dataset = load_dataset(tmp_path / "one")
        assert dataset.format == "parquet"
        assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [28, 6, 6]

    def test_grey_stays_grey_and_a_mixture_is_converted_only_when_asked(self, tmp_path, images, labels):
        (tmp_path / "grey").write_bytes(shard(images[..., 0], labels))
        assert load_dataset(tmp_path / "grey").image_shape == (1, 12, 10)
        mixed = [images[0], *images[1:, :, :, 0]]
        (tmp_path / "mixed").write_bytes(shard(mixed, labels))
        for read in (load_dataset, inspect_dataset):
            refused(tmp_path / "mixed", "row 1", "is grey", "row 0) is in colour", '{"color": "rgb"}', read=read)
        assert load_dataset(tmp_path / "mixed", conversion=Conversion(color="rgb")).image_shape == (3, 12, 10)
        assert inspect_dataset(tmp_path / "mixed", conversion=Conversion(color="grey")).image_shape == (1, 12, 10)

    def test_large_images_are_decoded_the_same_by_several_threads(self, tmp_path, monkeypatch):
        images = np.random.default_rng(1).integers(0, 256, (12, 128, 130, 3), np.uint8)
        (tmp_path / "large").write_bytes(
            shard(images, np.arange(12) % 2, split=pa.array(["train"] * 10 + ["val", "test"]))
        )
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        assert torch.equal(
            load_dataset(tmp_path / "large").train.images, torch.from_numpy(images[:10].transpose(0, 3, 1, 2).copy())
        )

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                lambda images, labels: ([*images[:5], b"\x89PNG broken", *images[6:]], labels),
                ["row 5", "not a readable"],
            ),
            (
                lambda images, labels: ([*images[:5], encode(images[5])[:-60], *images[6:]], labels),
                ["row 5", "corrupt"],
            ),
            (lambda images, labels: ([*images[:7], images[7][:10], *images[8:]], labels), ["row 7", "10×10", "12×10"]),
            (lambda images, labels: ([*images[:7], b"", *images[8:]], labels), ["row 7", "empty"]),
            (
                lambda images, labels: ([*images[:7], encode(images[7], "GIF"), *images[8:]], labels),
                ["row 7", "not a readable"],
            ),
            (lambda images, labels: (images, [*labels[:9], -1, *labels[10:]]), ["row 9", "-1"]),
            (lambda images, labels: (images, [*labels[:9], None, *labels[10:]]), ["row 9", "missing"]),
            (lambda images, labels: (images, [0.5, *labels[1:]]), ["row 0", "0.5"]),
            (lambda images, labels: (images, ["cat"] * 40), ["labels are of type string"]),
        ],
    )
    def test_wrong_rows_are_refused_by_number(self, tmp_path, images, labels, change, words):
        (tmp_path / "wrong").write_bytes(shard(*change(list(images), labels.tolist())))
        refused(tmp_path / "wrong", *words)
        refused(tmp_path / "wrong", *words, read=inspect_dataset)

    def test_an_image_larger_than_allowed_is_refused_before_decoding(self, tmp_path):
        bomb = io.BytesIO()
        Image.new("1", (9000, 9000)).save(bomb, "PNG")
        (tmp_path / "bomb").write_bytes(shard([bomb.getvalue()] * 12, [0, 1] * 6))
        refused(tmp_path / "bomb", "row 0", "9000×9000", "limit")

    def test_missing_columns_name_the_ones_that_are_there(self, tmp_path):
        pq.write_table(pa.table({"pixels": [1], "label": [0]}), tmp_path / "p")
        refused(tmp_path / "p", "no column `image`", "pixels")
        pq.write_table(pa.table({"image": ["cat.png"], "label": [0]}), tmp_path / "p")
        refused(tmp_path / "p", "`image` is of type string")

    def test_a_damaged_file_is_refused(self, tmp_path, images, labels):
        data = shard(images, labels)
        (tmp_path / "p").write_bytes(data[: len(data) // 2])
        refused(tmp_path / "p", "cannot be read")


class TestArchives:
    @pytest.mark.parametrize("name", ["/train.parquet", "../train.parquet", "a/../../train.parquet"])
    def test_path_tricks_are_refused(self, tmp_path, name):
        refused(tar_of(tmp_path / "t", {name: b""}), "points outside")

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    def test_links_and_devices_are_refused(self, tmp_path, kind):
        info = tarfile.TarInfo("train.parquet")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "t", "w") as archive:
            archive.addfile(info)
        refused(tmp_path / "t", "not a regular file")

    def test_a_member_that_declares_too_much_is_refused_before_it_is_read(self, tmp_path):
        info = tarfile.TarInfo("ignored.bin")
        info.size = 10**12
        (tmp_path / "t").write_bytes(info.tobuf() + bytes(2048))
        refused(tmp_path / "t", "declares more than")

    def test_an_enormous_extended_header_is_refused(self, tmp_path):
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, 8 * 10**9
        (tmp_path / "t").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(2048))
        refused(tmp_path / "t", "header of")

    @pytest.mark.parametrize(
        ("members", "words"),
        [
            ({"README.md": b""}, ["no .parquet"]),
            ({"part-0.parquet": b"PAR1"}, ["part-0.parquet", "train*"]),
            ({"train.parquet": b"PAR1 and nothing else"}, ["train.parquet", "cannot be read"]),
        ],
    )
    def test_archives_without_readable_shards_are_refused(self, tmp_path, members, words):
        refused(tar_of(tmp_path / "t", members), *words)

    @pytest.mark.parametrize("again", ["data/train.parquet", "./data/train.parquet"])
    def test_a_shard_that_is_there_twice_is_refused_and_not_counted_twice(self, tmp_path, images, labels, again):
        data = shard(images, labels)
        with tarfile.open(tmp_path / "t", "w") as archive:
            for name in ("data/train.parquet", again):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        for read in (load_dataset, inspect_dataset):
            refused(tmp_path / "t", repr(again), "twice", read=read)

    @pytest.mark.parametrize("mode", ["w", "w:gz"])
    def test_an_empty_tar_is_called_one(self, tmp_path, mode):
        refused(tar_of(tmp_path / "t", {}, mode), "tar archive", ".parquet")

    @pytest.mark.parametrize("mode", ["w", "w:gz"])
    def test_damage_anywhere_is_read_or_refused_and_never_another_error(self, tmp_path, images, labels, mode):
        whole = tar_of(tmp_path / "t", {"train.parquet": shard(images[:12, :3, :3], labels[:12])}, mode).read_bytes()
        generator = np.random.default_rng(0)
        for _ in range(150):
            damaged = np.frombuffer(whole, np.uint8).copy()
            # Most of a small tar is padding: aim at the header and at the beginning of the shard.
            places = generator.integers(4, min(len(damaged), 2048), 2)
            damaged[places] = generator.integers(0, 256, 2)
            (tmp_path / "d").write_bytes(damaged.tobytes())
            try:
                load_dataset(tmp_path / "d")
            except EngineError as error:
                assert error.code == "dataset_invalid"

    def test_an_empty_shard_and_shards_with_and_without_labels_are_refused(self, tmp_path, images, labels):
        empty = shard(images[:0], pa.array([], pa.int64()))
        train = shard(images, labels)
        refused(tar_of(tmp_path / "t", {"train.parquet": train, "test.parquet": empty}), "test.parquet", "no rows")
        unlabelled = shard(images, None)
        refused(tar_of(tmp_path / "u", {"train.parquet": train, "test.parquet": unlabelled}), "others have none")

    def test_a_truncated_gzip_is_refused(self, tmp_path, images, labels):
        path = tar_of(tmp_path / "t", {"train.parquet": shard(images, labels)}, "w:gz")
        path.write_bytes(path.read_bytes()[:-5000])
        refused(path, "tar archive cannot be read")

    @pytest.mark.parametrize(
        ("content", "word"), [(b"", "is empty"), (b"hello, world", "hello"), (b"\x93NUMPY\x01\x00", "np.savez")]
    )
    def test_other_files_are_refused_with_what_they_begin_with(self, tmp_path, content, word):
        (tmp_path / "f.npz").write_bytes(content)
        refused(tmp_path / "f.npz", word, read=inspect_dataset)


class TestSplits:
    def test_missing_splits_are_a_tenth_each_stratified_seeded_and_disjoint(self):
        labels = np.repeat([0, 1, 2], [600, 300, 100])
        codes = complete_splits(np.full(1000, TRAIN, np.int8), labels, seed=3)
        for code in (VAL, TEST):
            assert np.bincount(labels[codes == code]).tolist() == [60, 30, 10]
        assert (codes == TRAIN).sum() == 800
        assert np.array_equal(codes, complete_splits(np.full(1000, TRAIN, np.int8), labels, seed=3))
        assert not np.array_equal(codes, complete_splits(np.full(1000, TRAIN, np.int8), labels, seed=4))

    def test_a_given_split_is_never_drawn_from(self):
        codes = np.repeat(np.array([TRAIN, TEST], np.int8), [200, 50])
        completed = complete_splits(codes, None, seed=0)
        assert (completed[200:] == TEST).all()
        assert (completed[:200] == VAL).sum() == 20 and (completed[:200] == TEST).sum() == 0

    def test_too_few_examples_are_refused(self):
        with pytest.raises(EngineError, match="at least 10"):
            complete_splits(np.zeros(9, np.int8), None, seed=0)


class TestProfile:
    def test_profile_has_splits_and_statistics_of_the_train_pixels(self, save):
        digits = load_digits()
        pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
        split = np.array(["train"] * 1297 + ["test"] * 500)
        profile = inspect_dataset(save(x=pixels, y=digits.target, split=split))
        assert (profile.format, profile.classes, profile.image_shape) == ("npz", 10, (1, 8, 8))
        assert profile.splits == {"train": 1167, "val": 130, "test": 500}
        assert profile.mean == pytest.approx([(pixels[:1297] / 255).mean()])
        assert profile.std == pytest.approx([(pixels[:1297] / 255).std()])

    def test_profile_and_loaded_dataset_agree_on_every_layout(self, tmp_path, save, images, labels):
        single = tmp_path / "one.parquet"
        single.write_bytes(shard(images, labels))
        archive = tar_of(tmp_path / "t", {"train.parquet": shard(images, labels)})
        for path in (save(x=images, y=labels), single, archive):
            profile, dataset = inspect_dataset(path), load_dataset(path)
            assert profile.format == dataset.format and profile.image_shape == dataset.image_shape
            assert list(profile.splits.values()) == [len(s) for s in (dataset.train, dataset.val, dataset.test)]
            assert profile.mean == pytest.approx((images / 255).mean(axis=(0, 1, 2)).tolist())
