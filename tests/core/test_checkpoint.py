"""A checkpoint gives back exactly what was saved, to the same request only, and never half of it."""

import torch

from core.checkpoint import Checkpoint, Saved


def test_finished_steps_and_the_unfinished_one_come_back(tmp_path):
    path = tmp_path / "checkpoint"
    first = Checkpoint(path, "a")
    shared = torch.arange(6.0).reshape(2, 3)
    first.finish("refit", Saved({"error": 0.25}, {"weight": shared, "view": shared.T, "count": torch.tensor(3)}))
    first.save("train", Saved({"step": 7}, {"rng": torch.ones(4, dtype=torch.uint8)}))

    second = Checkpoint(path, "a")
    refit = second.finished("refit")
    assert refit.values == {"error": 0.25}
    assert torch.equal(refit.tensors["view"], shared.T)
    assert refit.tensors["count"].shape == ()
    assert second.partial("train").values == {"step": 7}
    assert second.partial("other") is None
    second.finish("train", Saved())
    assert Checkpoint(path, "a").partial("train") is None


def test_another_requests_checkpoint_is_not_taken(tmp_path):
    path = tmp_path / "checkpoint"
    Checkpoint(path, "a").finish("refit", Saved({"error": 1}))
    assert Checkpoint(path, "b").finished("refit") is None


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(tmp_path):
    path = tmp_path / "checkpoint"
    Checkpoint(path, "a").finish("refit", Saved({}, {"weight": torch.zeros(100)}))
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert Checkpoint(path, "a").finished("refit") is None


def test_it_is_due_after_its_interval_and_tells_when_it_was_written(tmp_path):
    told = []
    checkpoint = Checkpoint(tmp_path / "checkpoint", interval_s=0.0, written=lambda: told.append(1))
    assert checkpoint.due
    checkpoint.save("train", Saved({"step": 1}))
    assert told == [1]
    assert not Checkpoint(interval_s=0.0).due
    assert not Checkpoint(tmp_path / "other", interval_s=60.0).due


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    told = []
    checkpoint = Checkpoint(tmp_path / "state", "a", written=lambda: told.append(True))
    checkpoint.save("train", Saved({"step": 1}))
    monkeypatch.setattr("safetensors.torch.save_file", full)
    checkpoint.save("train", Saved({"step": 2}))
    assert len(told) == 1 and [path.name for path in tmp_path.iterdir()] == ["state"]
    assert Checkpoint(tmp_path / "state", "a").partial("train").values == {"step": 1}
