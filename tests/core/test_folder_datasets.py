"""Archives of class folders: what their folders say is what the dataset holds, and what cannot be meant is refused."""

import io
import json
import stat
import tarfile
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.errors import EngineError
from core.recovery import Conversion, archive, inspect_dataset, load_dataset

SPLIT_FOLDERS = {"train": ("train", "Training"), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}


def png(value: int, size=(6, 5), mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size[::-1], value if mode == "L" else (value, value // 2, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, members, kind):
    """An archive of `members` (name to bytes; a name that ends in / is a folder)."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def refused(path, *words, **options):
    messages = set()
    for read in (load_dataset, inspect_dataset):
        with pytest.raises(EngineError) as caught:
            read(path, **options)
        assert caught.value.code == "dataset_invalid"
        messages.add(caught.value.message)
    (message,) = messages
    for word in words:
        assert word in message
    return message


def folders(classes=("cat", "ant", "bee"), count=12, root=""):
    return {
        f"{root}{name}/{index}.png": png(20 * index + place)
        for place, name in enumerate(classes)
        for index in range(count)
    }


@pytest.fixture(params=["tar", "tar.gz", "zip"])
def kind(request):
    return request.param


class TestLayouts:
    def test_classes_are_the_sorted_folders_and_pixels_are_kept(self, tmp_path, kind):
        path = write(tmp_path / "set", folders(), kind)
        dataset, profile = load_dataset(path, seed=3), inspect_dataset(path)
        assert profile.format == dataset.format == f"folder_{kind.split('.')[0]}"
        assert (profile.classes, profile.class_names) == (3, ("ant", "bee", "cat"))
        assert profile.splits == {"train": 28, "val": 4, "test": 4} and profile.image_shape == (3, 6, 5)
        totals = np.sum([profile.class_counts[name].each for name in profile.splits], axis=0)
        assert totals.tolist() == [12, 12, 12]
        # The first channel of a `cat` is a multiple of 20, and of the others one or two more.
        place = {0: 1, 1: 2, 2: 0}
        for split in (dataset.train, dataset.val, dataset.test):
            assert (split.images[:, 0, 0, 0] % 20).tolist() == [place[label] for label in split.labels.tolist()]
            assert torch.equal(split.images[:, 2, 5, 4], 255 - split.images[:, 0, 0, 0])

    def test_splits_inside_other_folders_and_what_lies_about_are_understood(self, tmp_path, kind):
        members = {
            "my set/": b"",
            "README.md": b"# data",
            "__MACOSX/my set/train/cat/._0.png": b"fork",
            "my set/.DS_Store": b"x",
            "my set/train/cat/Thumbs.db": b"x",
            "my set/train/cat/notes.txt": b"x",
            **folders(("cat", "ant"), 10, "my set/train/"),
            **folders(("cat", "ant", "bee"), 2, "my set/validation/"),
            **folders(("cat",), 3, "my set/test/"),
        }
        profile = inspect_dataset(write(tmp_path / "set", members, kind))
        assert profile.splits == {"train": 20, "val": 6, "test": 3}
        assert profile.class_names == ("ant", "bee", "cat")
        assert [(one.least, one.most, one.each) for one in profile.class_counts.values()] == [
            (0, 10, (10, 0, 10)),
            (2, 2, (2, 2, 2)),
            (0, 3, (0, 0, 3)),
        ]

    def test_images_without_class_folders_are_an_unlabelled_dataset(self, tmp_path, kind):
        flat = inspect_dataset(write(tmp_path / "flat", {f"{i}.png": png(i) for i in range(20)}, kind))
        assert (flat.classes, flat.class_names, flat.class_counts) == (None, None, None)
        split = {f"{name}/{i}.png": png(i) for name, n in (("train", 12), ("test", 5)) for i in range(n)}
        dataset = load_dataset(write(tmp_path / "split", split, kind))
        assert not dataset.labelled and [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [11, 1, 5]

    def test_names_may_hold_any_letters_and_spaces(self, tmp_path, kind):
        classes = ("Eis\u202fcreme", "猫\u3000", "می\u200cخواهم")
        profile = inspect_dataset(write(tmp_path / "set", folders(classes), kind))
        assert profile.class_names == tuple(sorted(classes))

    def test_a_class_may_be_called_like_a_split(self, tmp_path, kind):
        path = write(tmp_path / "set", folders(("train", "car", "bus")), kind)
        assert inspect_dataset(path).class_names == ("bus", "car", "train")

    def test_shards_in_a_zip_are_read_like_shards_in_a_tar(self, tmp_path):
        def shard(values):
            names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["dark", "light", "none"]}}}}
            table = pa.table({"image": [png(v) for v in values], "label": [int(v > 100) for v in values]})
            buffer = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), buffer)
            return buffer.getvalue()

        members = {"data/train-0.parquet": shard(range(0, 240, 10)), "data/test-0.parquet": shard([3, 200, 5])}
        profiles = [inspect_dataset(write(tmp_path / name, members, name)) for name in ("zip", "tar")]
        assert [profile.format for profile in profiles] == ["parquet_zip", "parquet_tar"]
        for profile in profiles:
            assert (profile.classes, profile.class_names) == (3, ("dark", "light", "none"))
            assert profile.splits["test"] == 3 and profile.class_counts["test"].each == (2, 1, 0)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        classes=st.lists(
            st.text(st.characters(categories=["L", "N"], include_characters=" -_"), min_size=1, max_size=12),
            min_size=2,
            max_size=5,
            unique=True,
        ),
        root=st.sampled_from(["", "./", "data/", "a b/c/"]),
        spellings=st.none() | st.tuples(*(st.sampled_from(names) for names in SPLIT_FOLDERS.values())),
        counts=st.lists(st.integers(1, 6), min_size=15, max_size=15),
        kind=st.sampled_from(["zip", "tar"]),
        seed=st.randoms(use_true_random=False),
    )
    def test_any_layout_of_folders_gives_its_examples_back(
        self, tmp_path, classes, root, spellings, counts, kind, seed
    ):
        splits = dict(zip(SPLIT_FOLDERS, spellings, strict=True)) if spellings else {"train": None}
        members, expected = {}, {}
        for split, folder in splits.items():
            for place, name in enumerate(classes):
                count = counts.pop() + (9 if split == "train" else 0)
                expected[split, name] = count
                for index in range(count):
                    members["/".join(filter(None, [root.rstrip("/"), folder, name, f"{index}.PNG"]))] = png(place)
        names = list(members)
        seed.shuffle(names)
        path = write(tmp_path / "set", {name: members[name] for name in names}, kind)
        profile = inspect_dataset(path)
        assert profile.class_names == tuple(sorted(classes))
        if spellings:
            found = {
                name: dict(zip(profile.class_names, c.each, strict=True)) for name, c in profile.class_counts.items()
            }
            assert found == {split: {name: expected[split, name] for name in classes} for split in splits}
        else:
            total = np.sum([c.each for c in profile.class_counts.values()], axis=0)
            assert total.tolist() == [expected["train", name] for name in profile.class_names]
        dataset = load_dataset(path, seed=1)
        place = [classes.index(name) for name in profile.class_names]
        assert all(
            split.images[:, 0, 0, 0].tolist() == [place[label] for label in split.labels.tolist()]
            for split in (dataset.train, dataset.val, dataset.test)
        )


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"extra/cat/1.png": png(1)}, ["'extra/cat/1.png'", "2 folders deep", "class/image.png"]),
            ({"data/1.png": png(1)}, ["'data/1.png' does not", "2 folders deep", "class/image.png"]),
            ({"data/train/cat/1.png": png(1)}, ["['train']", "['ant', 'bee', 'cat']", "Give every image a split"]),
            ({"data/emu/": b""}, ["'emu'", "holds no image"]),
            ({"data/cat/x.gif": b"GIF89a"}, ["data/cat/x.gif", "not called like an image"]),
            ({"data/cat/x": png(1)}, ["data/cat/x", "not called like an image"]),
            ({"data/cat/x.png": b""}, ["data/cat/x.png", "is empty"]),
            ({"data/cat/x.png": png(3)[:-30]}, ["data/cat/x.png", "corrupt or cut short", "Replace it"]),
            ({"data/cat/x.png": b"<html>"}, ["data/cat/x.png", "not a readable PNG"]),
            ({"data/cat/x.png": png(3, (7, 5))}, ["data/cat/x.png", "7×5", "6×5", '"size": [6, 5]']),
            ({"data/cat/x.png": png(3, mode="L")}, ["data/cat/x.png", "is grey", '"color"']),
            ({"data/train.parquet": b"PAR1"}, ["Parquet shards and images"]),
            ({"data/../../x.png": png(1)}, ["points outside"]),
            ({"/data/cat/x.png": png(1)}, ["points outside"]),
            ({"C:/cat/x.png": png(1)}, ["points outside"]),
            ({"data\\cat\\x.png": png(1)}, ["backslash"]),
            ({"data/cat/\x1b[2Jx.png": png(1)}, ["control character"]),
            ({f"data/{'c' * 300}/x.png": png(1)}, ["more than 255 bytes"]),
            ({"./data/cat/0.png": png(1)}, ["./data/cat/0.png", "twice"]),
        ],
    )
    def test_what_cannot_be_meant_is_refused_by_name(self, tmp_path, kind, change, words):
        refused(write(tmp_path / "set", {**folders(root="data/"), **change}, kind), *words)

    def test_one_class_alone_is_refused_by_name(self, tmp_path, kind):
        refused(write(tmp_path / "set", folders(("cat",)), kind), "'cat'", "at least two classes")

    def test_archives_without_images_are_refused(self, tmp_path, kind):
        for name, members in (("notes", {"a/b.txt": b"x", "README": b"x"}), ("folders", {"cat/": b"", "dog/": b""})):
            refused(write(tmp_path / name, members, kind), "holds no image and no .parquet")

    def test_links_and_devices_in_a_zip_are_refused(self, tmp_path):
        for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
            path = write(tmp_path / "set", folders(), "zip")
            info = zipfile.ZipInfo("cat/link.png")
            info.create_system, info.external_attr = 3, (mode | 0o777) << 16
            with zipfile.ZipFile(path, "a") as file:
                file.writestr(info, "/etc/passwd")
            refused(path, "'cat/link.png'", "not a regular file")

    def test_an_encrypted_zip_is_refused(self, tmp_path):
        path = write(tmp_path / "set", folders(count=4), "zip")
        data = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = data.find(signature)
            data[at + offset] |= 1
        path.write_bytes(bytes(data))
        refused(path, "'cat/0.png'", "encrypted", "without a password")

    def test_unusual_compression_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "set", "w", zipfile.ZIP_LZMA) as file:
            for name, data in folders().items():
                file.writestr(name, data)
        refused(tmp_path / "set", "method 14", "deflate")

    def test_a_bomb_is_refused_by_what_it_declares(self, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(archive, "_LEAST_BOMB_BYTES", 100_000)
        path = write(tmp_path / "set", {**folders(count=4), "cat/zeros.bmp": bytes(4_000_000)}, kind)
        if kind == "tar":
            refused(path, "cat/zeros.bmp", "not a readable")
        else:
            refused(path, "more than 100 times its size")

    def test_more_than_there_is_room_for_is_refused_before_it_is_read(self, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(archive, "decoded_limit_bytes", lambda: 1000)
        refused(write(tmp_path / "set", folders(), kind), "declares more than 1,000 bytes", "room")

    def test_too_many_members_are_refused(self, tmp_path, kind, monkeypatch):
        monkeypatch.setattr(archive, "MAX_MEMBERS", 30)
        refused(write(tmp_path / "set", folders(), kind), "30 members", "Parquet shards")

    def test_a_zip_directory_too_large_for_memory_is_refused_before_it_is_read(self, tmp_path, monkeypatch):
        path = write(tmp_path / "set", folders(), "zip")
        monkeypatch.setattr(archive, "_MAX_DIRECTORY_BYTES", 500)
        refused(path, "36 members", "directory of")
        np.savez(tmp_path / "arrays.npz", **{f"a{i}": np.zeros(3) for i in range(20)})
        refused(tmp_path / "arrays.npz", "20 members", "directory of")

    def test_a_member_that_was_damaged_is_named(self, tmp_path):
        path = write(tmp_path / "set", {name: data * 1 for name, data in folders().items()}, "zip")
        with zipfile.ZipFile(path) as file:
            info = file.getinfo("bee/3.png")
        data = bytearray(path.read_bytes())
        data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
        path.write_bytes(bytes(data))
        refused(path, "zip archive cannot be read")

    def test_a_truncated_archive_is_refused(self, tmp_path, kind):
        path = write(tmp_path / "set", folders(), kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        refused(path, "cannot be read", "truncated")

    def test_damage_anywhere_is_read_or_refused_and_never_another_error(self, tmp_path, kind):
        whole = np.frombuffer(write(tmp_path / "set", folders(count=4), kind).read_bytes(), np.uint8)
        generator = np.random.default_rng(0)
        for _ in range(150):
            damaged = whole.copy()
            places = generator.integers(4, len(damaged), 2)
            damaged[places] = generator.integers(0, 256, 2)
            (tmp_path / "damaged").write_bytes(damaged.tobytes())
            try:
                inspect_dataset(tmp_path / "damaged")
            except EngineError as error:
                assert error.code == "dataset_invalid"


class TestDisagreement:
    def shard(self, labels, names):
        features = {"info": {"features": {"label": {"names": names}}}}
        table = pa.table({"image": [png(10 * i) for i in range(len(labels))], "label": labels})
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), buffer)
        return buffer.getvalue()

    def test_shards_that_name_their_classes_differently_are_refused(self, tmp_path):
        members = {
            "train.parquet": self.shard([0, 1] * 6, ["a", "b"]),
            "test.parquet": self.shard([0, 1] * 6, ["b", "a"]),
        }
        refused(write(tmp_path / "set", members, "tar"), "name their classes differently")

    def test_a_label_without_a_name_is_refused_by_row(self, tmp_path):
        (tmp_path / "set").write_bytes(self.shard([0, 1, 0, 2] * 4, ["a", "b"]))
        refused(tmp_path / "set", "row 3", "label 2 has no name", "2 classes")

    def test_garbled_names_are_none(self, tmp_path):
        for names in ("ab", [1, 2], [], None, ["a", "\x00"]):
            (tmp_path / "set").write_bytes(self.shard([0, 1] * 6, names))
            assert inspect_dataset(tmp_path / "set").class_names is None


class TestConversion:
    def test_sizes_and_channels_are_made_alike_when_asked(self, tmp_path, kind):
        members = {
            f"{name}/{i}.png": png(90, size, mode)
            for name in ("a", "b")
            for i, (size, mode) in enumerate([((6, 5), "RGB"), ((12, 10), "L"), ((9, 30), "RGB")] * 4)
        }
        path = write(tmp_path / "set", members, kind)
        refused(path, "Resize all images")
        profile = inspect_dataset(path, conversion=Conversion((6, 5), "grey"))
        assert profile.image_shape == (1, 6, 5)
        dataset = load_dataset(path, conversion=Conversion((6, 5), "rgb"))
        assert dataset.image_shape == (3, 6, 5)
        assert {tuple(image[:, 3, 2].tolist()) for image in dataset.train.images} == {(90, 45, 165), (90, 90, 90)}

    def test_a_picture_is_covered_from_its_middle_and_keeps_its_proportions(self, tmp_path):
        wide = np.zeros((4, 12, 3), np.uint8)
        wide[:, 4:8] = 200
        buffer = io.BytesIO()
        Image.fromarray(wide).save(buffer, "PNG")
        members = {f"{name}/{i}.png": buffer.getvalue() for name in "ab" for i in range(6)}
        images = load_dataset(write(tmp_path / "set", members, "zip"), conversion=Conversion((4, 4))).train.images
        assert (images == 200).all()

    def test_arrays_are_not_converted(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.arange(20) % 2)
        refused(tmp_path / "a.npz", "convert is for encoded images", conversion=Conversion((2, 2)))

    @pytest.mark.parametrize("size", [(0, 4), (4,), (5000, 4)])
    def test_sizes_that_no_image_has_are_refused(self, size):
        with pytest.raises(EngineError, match=r"convert\.size"):
            Conversion(size)


def test_paths_are_judged_as_a_whole():
    assert archive.is_ignored(PurePosixPath(".git/x.png")) and archive.is_ignored(PurePosixPath("a/__MACOSX/x.png"))
    assert not archive.is_ignored(PurePosixPath("a.b/x.y.png"))
