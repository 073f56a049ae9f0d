"""Archives of shards hold what their names say, and no trick of an archive is followed."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from core.errors import EngineError
from core.recovery import inspect_dataset, load_dataset
from tests.core.dataset_cases import refused, shard, tar_of


@pytest.mark.parametrize("name", ["/train.parquet", "../train.parquet", "a/../../train.parquet"])
def test_path_tricks_are_refused(tmp_path, name):
    refused(tar_of(tmp_path / "t", {name: b""}), "points outside")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("train.parquet")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "t", "w") as archive:
        archive.addfile(info)
    refused(tmp_path / "t", "not a regular file")


def test_a_member_that_declares_too_much_is_refused_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("ignored.bin")
    info.size = 10**12
    (tmp_path / "t").write_bytes(info.tobuf() + bytes(2048))
    refused(tmp_path / "t", "declares more than")


def test_an_enormous_extended_header_is_refused(tmp_path):
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
def test_archives_without_readable_shards_are_refused(tmp_path, members, words):
    refused(tar_of(tmp_path / "t", members), *words)


@pytest.mark.parametrize("again", ["data/train.parquet", "./data/train.parquet"])
def test_a_shard_that_is_there_twice_is_refused_and_not_counted_twice(tmp_path, images, labels, again):
    data = shard(images, labels)
    with tarfile.open(tmp_path / "t", "w") as archive:
        for name in ("data/train.parquet", again):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    for read in (load_dataset, inspect_dataset):
        refused(tmp_path / "t", repr(again), "twice", read=read)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_empty_tar_is_called_one(tmp_path, mode):
    refused(tar_of(tmp_path / "t", {}, mode), "tar archive", ".parquet")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_damage_anywhere_is_read_or_refused_and_never_another_error(tmp_path, images, labels, mode):
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


def test_an_empty_shard_and_shards_with_and_without_labels_are_refused(tmp_path, images, labels):
    empty = shard(images[:0], pa.array([], pa.int64()))
    train = shard(images, labels)
    refused(tar_of(tmp_path / "t", {"train.parquet": train, "test.parquet": empty}), "test.parquet", "no rows")
    unlabelled = shard(images, None)
    refused(tar_of(tmp_path / "u", {"train.parquet": train, "test.parquet": unlabelled}), "others have none")


def test_a_truncated_gzip_is_refused(tmp_path, images, labels):
    path = tar_of(tmp_path / "t", {"train.parquet": shard(images, labels)}, "w:gz")
    path.write_bytes(path.read_bytes()[:-5000])
    refused(path, "tar archive cannot be read")


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "is empty"), (b"hello, world", "hello"), (b"\x93NUMPY\x01\x00", "np.savez")]
)
def test_other_files_are_refused_with_what_they_begin_with(tmp_path, content, word):
    (tmp_path / "f.npz").write_bytes(content)
    refused(tmp_path / "f.npz", word, read=inspect_dataset)
