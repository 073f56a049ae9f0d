"""Slots: one for each GPU that may be seen, some for the CPU, and what their runners are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.devices import NoSuchDevice, job_slots
from worker.sandbox import environment


def test_every_visible_gpu_has_a_slot_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    slots = job_slots()
    assert [(slot.index, slot.gpu, set(slot.queues)) for slot in slots] == [
        (0, "3", {"gpu", "cpu"}),
        (1, "GPU-5", {"gpu", "cpu"}),
    ]
    assert [slot.queues for slot in job_slots(["gpu"])] == [("gpu",), ("gpu",)]
    told = [environment(Path("/x"), slot.threads, slot.gpu)["CUDA_VISIBLE_DEVICES"] for slot in slots]
    assert told == ["3", "GPU-5"]


def test_a_slot_has_as_many_gpus_as_a_job_is_to_have_and_none_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert [slot.gpu for slot in job_slots(gpus_per_slot=2)] == ["0,1", "2,3,4"]
    (shared,) = job_slots(["gpu"], gpus_per_slot=8)
    assert (shared.gpu, shared.gpus) == ("0,1,2,3,4", 5)


def test_slots_for_the_cpu_hide_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    slots = job_slots(["cpu"], 3)
    assert [(slot.gpu, slot.queues) for slot in slots] == [("", ("cpu",))] * 3
    assert environment(Path("/x"), 1, slots[0].gpu)["CUDA_VISIBLE_DEVICES"] == ""


def test_a_queue_that_nothing_here_can_serve_is_refused_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NoSuchDevice, match="--queues cpu"):
        job_slots(["gpu"])
    assert [slot.queues for slot in job_slots()] == [("cpu",)]
