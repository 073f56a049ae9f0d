"""A checkpoint gives back exactly what was saved, to the same request only, and never half of it."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file

from core.checkpoint import Checkpoint, Saved, digest_of


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


@pytest.mark.parametrize("place", ["steps", "finished", "values", "name", "index", "nesting", "shape"])
def test_content_that_no_engine_wrote_is_left_alone_with_a_message(tmp_path, caplog, monkeypatch, place):
    steps = {
        "steps": 7,
        "finished": [{"name": "refit", "values": {}}],
        "values": [None],
        "name": [["refit", True, {}]],
        "index": [],
        "nesting": None,
        "shape": {"name": "refit"},
    }[place]
    text = "[" * 100_000 if steps is None else json.dumps(steps)
    weight = {"0/weight": torch.zeros(3)}
    about = {"fingerprint": "a", "steps": text, "digest": digest_of(weight, text)}
    save_file(weight, tmp_path / "state", metadata=about)
    checkpoint = Checkpoint(tmp_path / "state", "a")
    assert checkpoint.left_at is None and checkpoint.finished("refit") is None
    assert "damaged" in caplog.text


def test_a_file_with_any_byte_changed_gives_what_was_saved_or_nothing(tmp_path, caplog):
    path = tmp_path / "state"
    first = Checkpoint(path, "a")
    first.finish("refit", Saved({"error": 0.25}, {"weight": torch.arange(40.0)}))
    first.save("train", Saved({"step": 7}, {"rng": torch.ones(9, dtype=torch.uint8)}))
    whole = path.read_bytes()
    draw = random.Random(0)
    given = 0
    for _ in range(1500):
        changed = bytearray(whole)
        for _ in range(draw.choice([1, 1, 1, 4, 30])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(bytes(changed))
        found = Checkpoint(path, "a")
        if found.left_at is not None:
            given += 1
            assert found.finished("refit").values == {"error": 0.25}
            assert torch.equal(found.finished("refit").tensors["weight"], torch.arange(40.0))
            assert found.partial("train").values == {"step": 7}
    assert given < 100 and "damaged" in caplog.text
    path.unlink()
    path.mkdir()
    assert Checkpoint(path, "a").left_at is None


def test_what_a_run_goes_on_from_is_told_once_and_not_before_it_was_put_to_use(tmp_path):
    path = tmp_path / "state"
    first = Checkpoint(path, "a")
    first.finish("refit", Saved())
    first.save("train", Saved({"step": 7}))
    told = []

    def again() -> Checkpoint:
        told.clear()
        return Checkpoint(path, "a", resumed=lambda *about: told.append(about))

    checkpoint = again()
    assert checkpoint.finished("refit") is not None and checkpoint.partial("train") is not None
    checkpoint.use("refit")
    assert not told
    checkpoint.use("train", 7)
    checkpoint.use("train", 7)
    checkpoint.save("train", Saved({"step": 9}))
    assert told == [("train", 7)]

    checkpoint = again()
    checkpoint.use("refit")
    checkpoint.save("train", Saved({"step": 1}))
    assert told == [("refit", None)]

    checkpoint = again()
    checkpoint.save("train", Saved({"step": 1}))
    assert not told
