"""Missing splits are drawn fairly, and a profile says what the loaded dataset has."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from core.errors import EngineError
from core.recovery import inspect_dataset, load_dataset
from core.recovery.chunks import TEST, TRAIN, VAL
from core.recovery.splits import complete_splits
from tests.core.dataset_cases import shard, tar_of


def test_missing_splits_are_a_tenth_each_stratified_seeded_and_disjoint():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    codes = complete_splits(np.full(1000, TRAIN, np.int8), labels, seed=3)
    for code in (VAL, TEST):
        assert np.bincount(labels[codes == code]).tolist() == [60, 30, 10]
    assert (codes == TRAIN).sum() == 800
    assert np.array_equal(codes, complete_splits(np.full(1000, TRAIN, np.int8), labels, seed=3))
    assert not np.array_equal(codes, complete_splits(np.full(1000, TRAIN, np.int8), labels, seed=4))


def test_a_given_split_is_never_drawn_from():
    codes = np.repeat(np.array([TRAIN, TEST], np.int8), [200, 50])
    completed = complete_splits(codes, None, seed=0)
    assert (completed[200:] == TEST).all()
    assert (completed[:200] == VAL).sum() == 20 and (completed[:200] == TEST).sum() == 0


def test_too_few_examples_are_refused():
    with pytest.raises(EngineError, match="at least 10"):
        complete_splits(np.zeros(9, np.int8), None, seed=0)


def test_profile_has_splits_and_statistics_of_the_train_pixels(save):
    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
    split = np.array(["train"] * 1297 + ["test"] * 500)
    profile = inspect_dataset(save(x=pixels, y=digits.target, split=split))
    assert (profile.format, profile.classes, profile.image_shape) == ("npz", 10, (1, 8, 8))
    assert profile.splits == {"train": 1167, "val": 130, "test": 500}
    assert profile.mean == pytest.approx([(pixels[:1297] / 255).mean()])
    assert profile.std == pytest.approx([(pixels[:1297] / 255).std()])


def test_profile_and_loaded_dataset_agree_on_every_layout(tmp_path, save, images, labels):
    single = tmp_path / "one.parquet"
    single.write_bytes(shard(images, labels))
    archive = tar_of(tmp_path / "t", {"train.parquet": shard(images, labels)})
    for path in (save(x=images, y=labels), single, archive):
        profile, dataset = inspect_dataset(path), load_dataset(path)
        assert profile.format == dataset.format and profile.image_shape == dataset.image_shape
        assert list(profile.splits.values()) == [len(s) for s in (dataset.train, dataset.val, dataset.test)]
        assert profile.mean == pytest.approx((images / 255).mean(axis=(0, 1, 2)).tolist())
