"""However a task ends, its job ends once, as what it was, with files only where it succeeded."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select

from store.contract import ErrorCode, InspectionStatus, JobStatus, PlanStatus
from store.tables import JobEvent

TERMINAL_EVENTS = {"job.succeeded", "job.failed", "job.cancelled"}


def terminal_events(bench, id: str) -> list[str]:
    return [event for event in bench.events(id) if event in TERMINAL_EVENTS]


def test_a_finished_job_has_its_artifact_its_stages_and_no_scratch(bench):
    bench.supervisor()
    id = bench.add_job("succeed")
    job = bench.ended(id)
    assert (job.status, job.attempt) == (JobStatus.succeeded, 1), job.error
    artifact = bench.artifacts(id)["model.bin"]
    with bench.objects.open_reader(artifact.object_key) as reader:
        assert reader.read() == b"smaller"
    assert bench.events(id) == ["job.queued", "job.running", *["job.stage"] * 3, "job.succeeded"]
    assert job.progress["fraction"] == 1.0
    bench.when(lambda: not bench.scratch_folders())


def test_every_epoch_becomes_one_event_in_order_and_between_its_stages(bench):
    bench.supervisor()
    id = bench.add_job("epochs", epochs=150)
    assert bench.ended(id).status is JobStatus.succeeded
    with bench.database.read() as session:
        rows = session.scalars(select(JobEvent).where(JobEvent.job_id == id).order_by(JobEvent.seq)).all()
    events = [row.type for row in rows]
    assert events[2:4] == ["job.stage", "job.stage"] and events[4:154] == ["job.epoch"] * 150
    assert events[154:] == ["job.stage", "job.succeeded"]
    told = [row.data for row in rows if row.type == "job.epoch"]
    assert [data["epoch"] for data in told] == list(range(1, 151))
    assert told[0]["validation_accuracy"] == 0.8 and told[0]["output_error"] is None and told[0]["attempt"] == 1


@pytest.mark.parametrize("wrong", [{"loss": -1.0}, {"loss": 1e300}, {"train_accuracy": 1.5}, {"epoch": 0}])
def test_an_epoch_with_impossible_numbers_breaks_the_protocol(bench, wrong):
    bench.supervisor()
    job = bench.ended(bench.add_job("epochs", epochs=1, wrong=wrong))
    assert (job.status, job.error["code"]) == (JobStatus.failed, "internal")
    assert "protocol" in job.error["message"]


def test_a_refusal_of_the_engine_keeps_its_code_words_and_details(bench):
    bench.supervisor()
    job = bench.ended(bench.add_job("refuse"))
    assert job.status is JobStatus.failed
    assert job.error["code"] == "target_infeasible"
    assert job.error["message"] == "The cap cannot be reached."
    assert job.error["details"] == {"smallest": {"params": 7}}


def test_a_missed_target_shows_the_best_that_was_reached(bench):
    bench.supervisor()
    id = bench.add_job("miss")
    job = bench.ended(id)
    assert job.error["code"] == "target_unmet"
    assert job.result["met"] is False and job.result["artifacts"] == []
    assert "result" not in job.error["details"] and not bench.artifacts(id)


def test_an_unexpected_error_is_internal_and_keeps_the_code_to_the_log(bench):
    bench.supervisor()
    error = bench.ended(bench.add_job("raise")).error
    assert error["code"] == "internal"
    assert "secret" not in error["message"] and "Traceback" not in error["message"]
    assert error["log_tail"][-1] == "ValueError: a secret detail of the code"


def test_a_talkative_runner_leaves_a_bounded_log_with_its_last_lines(bench):
    bench.supervisor()
    tail = bench.ended(bench.add_job("chatter")).error["log_tail"]
    assert len(tail) <= 50 and "the last line" in tail


@pytest.mark.parametrize(
    ("do", "code"),
    [
        ("garbage", ErrorCode.internal),
        ("huge_line", ErrorCode.internal),
        ("wrong_result", ErrorCode.internal),
        ("wrong_digest", ErrorCode.internal),
        ("nan", ErrorCode.internal),
        ("exit", ErrorCode.internal),
        ("memory_bomb", ErrorCode.out_of_memory),
        ("fork_bomb", ErrorCode.internal),
    ],
)
def test_a_hostile_task_fails_its_own_job_and_the_next_one_succeeds(bench, monkeypatch, do, code):
    monkeypatch.setattr("worker.probe.available_memory_bytes", lambda: 2**29)
    bench.supervisor()
    first, second = bench.add_job(do), bench.add_job("succeed")
    job = bench.ended(first)
    assert (job.status, job.error["code"]) == (JobStatus.failed, code), job.error
    assert terminal_events(bench, first) == ["job.failed"] and not bench.artifacts(first)
    assert bench.ended(second).status is JobStatus.succeeded


@pytest.mark.parametrize("in_output", [False, True])
def test_a_task_that_fills_the_disk_is_stopped_with_words_and_leaves_nothing(bench, monkeypatch, in_output):
    monkeypatch.setattr("worker.attempt.MEASURE_EVERY_S", 0.1)
    bench.settings = bench.settings.model_copy(update={"max_scratch_bytes": 32 * 2**20})
    bench.supervisor()
    job = bench.ended(bench.add_job("fill_disk", in_output=in_output))
    assert (job.status, job.error["code"]) == (JobStatus.failed, "too_large")
    assert "0.0312 GiB" in job.error["message"] and "PENNYWEIGHT_MAX_SCRATCH_BYTES" in job.error["message"]
    bench.when(lambda: not bench.scratch_folders())


def test_a_full_disk_under_a_task_is_told_as_such(bench):
    bench.supervisor()
    error = bench.ended(bench.add_job("full_disk")).error
    assert error["retryable"] and "disk is full" in error["message"] and "/a/path" not in error["message"]


def test_a_link_among_the_outputs_is_not_followed(bench):
    bench.supervisor()
    id = bench.add_job("link", target=str(bench.settings.data_dir / "pennyweight.db"))
    job = bench.ended(id)
    assert (job.status, job.error["code"]) == (JobStatus.failed, "internal")
    assert not bench.artifacts(id)


def test_an_endless_loop_ends_as_timeout(bench):
    bench.supervisor()
    started = time.monotonic()
    job = bench.ended(bench.add_job("loop", max_runtime_s=1))
    assert (job.status, job.error["code"]) == (JobStatus.failed, "timeout")
    assert "1 s" in job.error["message"]
    assert time.monotonic() - started < 15


def test_a_native_crash_is_tried_again_once_and_then_fails(bench):
    bench.supervisor()
    id = bench.add_job("segfault")
    job = bench.ended(id)
    assert (job.attempt, job.error["code"]) == (2, "worker_lost")
    assert "SIGSEGV" in job.error["message"]
    assert "about to touch address 0" in job.error["log_tail"]
    assert terminal_events(bench, id) == ["job.failed"]


def test_a_rejected_upload_fails_the_job_that_waits_for_it(bench):
    bench.supervisor()
    id = bench.add_job("inspect_refuse")
    job = bench.ended(id)
    model = bench.model(job.model_id)
    assert model.status is InspectionStatus.rejected and model.error["code"] == "target_infeasible"
    assert (job.status, job.error["code"]) == (JobStatus.failed, "target_infeasible")
    assert bench.events(id) == ["job.queued", "job.failed"]


def test_a_plan_is_made_beside_a_running_job_with_the_widths_that_were_given(bench):
    bench.supervisor()
    long = bench.add_job("wait", seconds=20)
    bench.at_stage(long, "recover")
    plan = bench.planned(bench.add_plan("succeed", plan={"layers": [{"name": "conv1", "out": 7}]}))
    assert (plan.status, plan.result["layers"][0]["after"]["out"]) == (PlanStatus.ready, 7), plan.error
    assert bench.job(long).status is JobStatus.running
    bench.cancel(long)


@pytest.mark.parametrize(
    ("do", "code"), [("refuse", "target_infeasible"), ("raise", "internal"), ("segfault", "worker_lost")]
)
def test_a_plan_that_cannot_be_made_fails_with_the_code_a_job_would_have(bench, do, code):
    bench.supervisor()
    plan = bench.planned(bench.add_plan(do))
    assert (plan.status, plan.error["code"], plan.result) == (PlanStatus.failed, code, None)


def test_a_plan_on_a_rejected_model_fails_with_its_code(bench):
    bench.supervisor()
    plan = bench.planned(bench.add_plan("inspect_refuse"))
    assert (plan.status, plan.error["param"]) == (PlanStatus.failed, "/model")


def test_a_cancelled_job_shows_the_stage_that_it_was_in_as_cancelled(bench):
    bench.supervisor()
    id = bench.add_job("wait", seconds=20)
    bench.at_stage(id, "recover")
    bench.cancel(id)
    stages = {stage["name"]: stage["status"] for stage in bench.ended(id).progress["stages"]}
    assert (stages["intake"], stages["recover"], stages["deliver"]) == ("succeeded", "cancelled", "pending")


def test_an_inspection_does_not_wait_behind_a_job(bench):
    bench.supervisor()
    long = bench.add_job("wait", seconds=20)
    bench.at_stage(long, "recover")
    assert bench.inspected(bench.add_model("succeed")).status is InspectionStatus.ready
    assert bench.job(long).status is JobStatus.running
    bench.cancel(long)
