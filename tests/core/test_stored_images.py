"""Images too many for memory lie in a file, and everything that reads them sees what it would see in a tensor."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.recovery import RecoveryConfig, load_dataset, recover
from core.recovery.evaluation import predict
from core.recovery.images import RowFile, Split, StoredImages
from core.recovery.limits import decoded_limit_bytes, memory_allowance_bytes
from tests.core.recovery_cases import pruned_and_kept, pruned_network, save_digits, trained_network


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


class TestRecovery:
    def test_training_on_stored_images_gives_the_weights_of_training_in_memory(self, tmp_path, monkeypatch):
        path = save_digits(tmp_path)
        networks = []
        for allowance_bytes in (10**9, 10**4):
            monkeypatch.setattr("core.recovery.dataset.memory_allowance_bytes", lambda limit=allowance_bytes: limit)
            dataset = load_dataset(path)
            assert isinstance(dataset.train.images, StoredImages) == (allowance_bytes == 10**4)
            recovered = recover(
                pruned_network(),
                trained_network(),
                dataset,
                RecoveryConfig(epochs=2),
                kept=pruned_and_kept()[1],
                seed=0,
                device="cpu",
            )
            networks.append(recovered.network)
        held, stored = (network.tensors for network in networks)
        assert all(torch.equal(tensor, stored[name]) for name, tensor in held.items())


MEASURE = """
import json, sys
from pathlib import Path
import torch
from core.recovery import dataset, inspect_dataset, load_dataset, npz

def peak_bytes():
    # Not getrusage: its peak is handed down by whoever started us.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

torch.zeros(8).sum()
path = Path(sys.argv[1])
npz.CHUNK_BYTES = 2 * 2**20
start = peak_bytes()
inspect_dataset(path)
inspected = peak_bytes()
dataset.memory_allowance_bytes = lambda: 8 * 2**20
stored = load_dataset(path)
for split in (stored.train, stored.val, stored.test):
    for batch in split.images.split(64):
        batch.max()
order = torch.randperm(len(stored.train), generator=torch.Generator().manual_seed(0))
total = sum(int(stored.train.images[rows].numpy().sum()) for rows in order.split(64))
read = peak_bytes()
dataset.memory_allowance_bytes = lambda: 2**40
held = load_dataset(path)
assert total == sum(int(batch.numpy().sum()) for batch in held.train.images.split(64))
print(json.dumps([inspected - start, read - start, peak_bytes() - start]))
"""


class TestMemory:
    def test_a_set_beyond_the_allowance_never_takes_more_than_a_few_blocks_of_it(self, tmp_path):
        size_bytes = 240 * 2**20
        images = np.zeros((size_bytes // (3 * 128 * 128), 3, 128, 128), np.uint8)
        images[:, 1] = np.arange(len(images), dtype=np.uint8)[:, None, None]
        np.savez_compressed(tmp_path / "set.npz", x=images, y=np.arange(len(images)) % 5)
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "set.npz")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        inspecting, reading, holding = json.loads(done.stdout)
        assert inspecting < 0.3 * size_bytes and reading < 0.3 * size_bytes, done.stdout
        assert holding > 0.9 * size_bytes, done.stdout

    def test_the_share_follows_the_limits_of_the_process(self):
        script = (
            "import resource; from core.recovery.limits import *\n"
            "free = memory_allowance_bytes(), decoded_limit_bytes()\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))\n"
            "resource.setrlimit(resource.RLIMIT_DATA, (3 * 10**9, 3 * 10**9))\n"
            "print(*free, memory_allowance_bytes(), decoded_limit_bytes())"
        )
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        memory, decoded, limited_memory, limited = map(int, done.stdout.split())
        assert (memory, decoded) == (memory_allowance_bytes(), decoded_limit_bytes())
        assert limited_memory == min(memory, 75 * 10**7) and limited == max(limited_memory, 8 * 10**8)
