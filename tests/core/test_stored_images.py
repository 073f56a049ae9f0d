"""Images too many for memory lie in a file, and everything that reads them sees what it would see in a tensor."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.recovery import load_dataset
from core.recovery.evaluation import predict
from core.recovery.images import RowFile, Split, StoredImages


def stored(images: np.ndarray, rows: np.ndarray | None = None) -> StoredImages:
    file = RowFile(images.shape[1:], images.dtype)
    for start in range(0, len(images), 7):
        file.append(images[start : start + 7])
    return StoredImages(file, np.arange(len(images)) if rows is None else rows)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 3, 6, 5), np.uint8)


class TestRows:
    @given(rows=st.lists(st.integers(0, 49), max_size=60))
    def test_any_rows_in_any_order_are_those_of_a_tensor(self, rows):
        images = np.random.default_rng(0).integers(0, 256, (50, 3, 6, 5), np.uint8)
        chosen = torch.tensor(rows, dtype=torch.int64)
        assert torch.equal(stored(images)[chosen], torch.from_numpy(images)[chosen])

    def test_a_subset_counts_its_own_rows(self, images):
        odd = stored(images, np.arange(1, 50, 2))
        tensor = torch.from_numpy(images[1::2].copy())
        assert odd.shape == tensor.shape and odd.dtype == tensor.dtype and len(odd) == 25
        assert torch.equal(odd[torch.tensor([24, 0])], tensor[[24, 0]])
        assert torch.equal(odd[3:9], tensor[3:9])

    @pytest.mark.parametrize("size", [1, 7, 25, 40])
    def test_batches_are_those_of_a_tensor(self, images, size):
        odd = stored(images, np.arange(1, 50, 2))
        expected = torch.from_numpy(images[1::2].copy()).split(size)
        found = list(odd.split(size))
        assert len(found) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    def test_floats_keep_every_bit(self):
        images = np.random.default_rng(0).standard_normal((9, 1, 4, 4), np.float32)
        assert torch.equal(stored(images)[torch.arange(9)], torch.from_numpy(images))

    def test_a_file_that_was_cut_is_an_error_and_not_zeros(self, images):
        cut = stored(images)
        os.truncate(cut.source._file, 100)
        with pytest.raises(OSError, match="ends at byte"):
            cut[torch.tensor([40])]

    def test_the_file_goes_with_its_last_reader(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        reader = stored(images).to(torch.device("cpu"))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) == images.nbytes
        del reader
        assert not list(tmp_path.iterdir())


class TestSplits:
    def test_a_sample_is_in_memory_and_evenly_spaced(self, images):
        split = Split(stored(images), torch.arange(50))
        sample = split.sample(10)
        assert isinstance(sample.images, torch.Tensor) and sample.labels.tolist() == list(range(0, 50, 5))
        assert torch.equal(sample.images, torch.from_numpy(images[::5].copy()))
        assert isinstance(split.sample(80).images, torch.Tensor) and len(split.sample(80)) == 50

    def test_a_sample_of_large_images_is_a_smaller_one(self, images, monkeypatch):
        monkeypatch.setattr("core.recovery.images.SAMPLE_BYTES", 12 * 90)
        assert len(Split(stored(images), None).sample(40)) == 12

    def test_a_tensor_that_a_gpu_has_no_room_for_stays_on_the_host(self, images):
        host = StoredImages(torch.from_numpy(images), np.arange(50))
        assert torch.equal(host[torch.tensor([3, 1])], torch.from_numpy(images[[3, 1]]))
        assert torch.equal(torch.cat(list(host.split(8))), torch.from_numpy(images))


class TestLoading:
    def test_a_set_beyond_the_allowance_is_stored_and_reads_the_same(self, tmp_path, monkeypatch):
        generator = np.random.default_rng(1)
        images, labels = generator.integers(0, 256, (300, 8, 8), np.uint8), np.arange(300) % 3
        np.savez(tmp_path / "set.npz", x=images, y=labels)
        held = load_dataset(tmp_path / "set.npz", seed=5)
        monkeypatch.setattr("core.recovery.npz.CHUNK_BYTES", 1000)
        monkeypatch.setattr("core.recovery.dataset.memory_allowance_bytes", lambda: 5000)
        found = load_dataset(tmp_path / "set.npz", seed=5)
        for name in ("train", "val", "test"):
            one, other = getattr(held, name), getattr(found, name)
            assert isinstance(one.images, torch.Tensor) and isinstance(other.images, StoredImages)
            assert torch.equal(one.images, torch.cat(list(other.images.split(16))))
            assert torch.equal(one.labels, other.labels)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        assert torch.equal(predict(module, held.test.images, held), predict(module, found.test.images, found))
