"""Parquet shards are read exactly, and every kind of wrong one is refused with its file, row and reason."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from core.recovery import Conversion, inspect_dataset, load_dataset
from tests.core.dataset_cases import encode, refused, shard, tar_of


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_in_a_tar_give_their_splits(tmp_path, images, labels, mode, struct):
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


def test_a_single_file_with_a_split_column(tmp_path, images, labels):
    names = ["train"] * 28 + ["val"] * 6 + ["test"] * 6
    (tmp_path / "one").write_bytes(shard(images, labels, split=pa.array(names)))
    dataset = load_dataset(tmp_path / "one")
    assert dataset.format == "parquet"
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [28, 6, 6]


def test_grey_stays_grey_and_a_mixture_is_converted_only_when_asked(tmp_path, images, labels):
    (tmp_path / "grey").write_bytes(shard(images[..., 0], labels))
    assert load_dataset(tmp_path / "grey").image_shape == (1, 12, 10)
    mixed = [images[0], *images[1:, :, :, 0]]
    (tmp_path / "mixed").write_bytes(shard(mixed, labels))
    for read in (load_dataset, inspect_dataset):
        refused(tmp_path / "mixed", "row 1", "is grey", "row 0) is in colour", '{"color": "rgb"}', read=read)
    assert load_dataset(tmp_path / "mixed", conversion=Conversion(color="rgb")).image_shape == (3, 12, 10)
    assert inspect_dataset(tmp_path / "mixed", conversion=Conversion(color="grey")).image_shape == (1, 12, 10)


def test_large_images_are_decoded_the_same_by_several_threads(tmp_path, monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (12, 128, 130, 3), np.uint8)
    (tmp_path / "large").write_bytes(shard(images, np.arange(12) % 2, split=pa.array(["train"] * 10 + ["val", "test"])))
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
def test_wrong_rows_are_refused_by_number(tmp_path, images, labels, change, words):
    (tmp_path / "wrong").write_bytes(shard(*change(list(images), labels.tolist())))
    refused(tmp_path / "wrong", *words)
    refused(tmp_path / "wrong", *words, read=inspect_dataset)


def test_an_image_larger_than_allowed_is_refused_before_decoding(tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    (tmp_path / "bomb").write_bytes(shard([bomb.getvalue()] * 12, [0, 1] * 6))
    refused(tmp_path / "bomb", "row 0", "9000×9000", "limit")


def test_missing_columns_name_the_ones_that_are_there(tmp_path):
    pq.write_table(pa.table({"pixels": [1], "label": [0]}), tmp_path / "p")
    refused(tmp_path / "p", "no column `image`", "pixels")
    pq.write_table(pa.table({"image": ["cat.png"], "label": [0]}), tmp_path / "p")
    refused(tmp_path / "p", "`image` is of type string")


def test_a_damaged_file_is_refused(tmp_path, images, labels):
    data = shard(images, labels)
    (tmp_path / "p").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "p", "cannot be read")
