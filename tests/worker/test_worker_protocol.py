"""The bounded, checked language of runner and supervisor, and what is made of it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.contract import ErrorCode, ErrorInfo
from worker.process import RunnerSpec, make_folder, remove_folder
from worker.progress import MAX_STAGE_CHANGES, MAX_STAGES, ProgressBoard
from worker.protocol import (
    MAX_LINE_BYTES,
    CheckpointMessage,
    ErrorMessage,
    LineReader,
    ProgressMessage,
    ProtocolError,
    ResultMessage,
    ResumedMessage,
    decode,
    encode,
)
from worker.runner.session import describe
from worker.sandbox import Policy

STAGES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
MESSAGES = st.one_of(
    st.builds(
        ProgressMessage,
        stage=STAGES,
        status=st.sampled_from(["running", "succeeded", "skipped"]),
        step=st.none() | st.integers(0, 10**9),
        steps=st.none() | st.integers(0, 10**9),
        message=st.none() | st.text(max_size=500),
    ),
    st.builds(CheckpointMessage, state=st.sampled_from(["possible", "written"])),
    st.builds(
        ResumedMessage,
        step=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_./ -]{0,127}", fullmatch=True),
        number=st.none() | st.integers(0, 2**53 - 1),
    ),
    st.builds(ResultMessage, result=st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text())),
    st.builds(ErrorMessage, error=st.builds(ErrorInfo, code=st.sampled_from(list(ErrorCode)), message=st.text())),
)


@given(st.lists(MESSAGES, max_size=5), st.data())
def test_messages_survive_the_pipe_however_it_cuts_them(messages, data):
    stream = b"".join(encode(message) for message in messages)
    reader, received = LineReader(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert received == messages


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused_or_are_a_message(line):
    try:
        message = decode(line)
    except ProtocolError:
        return
    assert decode(encode(message).rstrip(b"\n")) == message


def test_a_line_without_an_end_is_refused_at_the_limit_not_collected():
    reader = LineReader()
    with pytest.raises(ProtocolError, match="longer than"):
        for _ in range(MAX_LINE_BYTES // 2**20 + 1):
            reader.feed(b"x" * 2**20)


def test_progress_never_goes_back_and_ends_at_one():
    now = iter(range(1000))
    board = ProgressBoard(clock=lambda: next(now))
    seen = []
    rounds = [
        "intake",
        "profile",
        "plan",
        "apply",
        "verify",
        "recover",
        "plan",
        "apply",
        "verify",
        "recover",
        "deliver",
    ]
    for stage in rounds:
        assert board.apply(ProgressMessage(stage=stage, status="running"))
        for step in range(3):
            assert not board.apply(ProgressMessage(stage=stage, status="running", step=step, steps=3))
            seen.append(board.snapshot().fraction)
        board.apply(ProgressMessage(stage=stage, status="succeeded"))
        seen.append(board.snapshot().fraction)
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert [stage.status for stage in board.snapshot().stages] == ["succeeded"] * 7
    assert board.snapshot().eta_s == 0


def test_a_stage_that_is_left_silently_counts_as_done():
    board = ProgressBoard()
    board.apply(ProgressMessage(stage="intake", status="running"))
    board.apply(ProgressMessage(stage="profile", status="running"))
    assert [stage.status for stage in board.snapshot().stages[:3]] == ["succeeded", "running", "pending"]


def test_a_running_stage_says_what_it_does_and_nothing_that_a_terminal_would_act_on():
    board = ProgressBoard()
    board.apply(ProgressMessage(stage="recover", status="running", step=1, steps=9, message="Loss 0.236\x1b[2J\n"))
    recover = {stage.name: stage for stage in board.snapshot().stages}["recover"]
    assert recover.message == "Loss 0.236[2J"
    board.apply(ProgressMessage(stage="deliver", status="running", message="Writing"))
    stages = {stage.name: stage for stage in board.snapshot().stages}
    assert (stages["recover"].message, stages["deliver"].message) == (None, "Writing")
    board.apply(ProgressMessage(stage="deliver", status="succeeded", message="Written"))
    assert {stage.message for stage in board.snapshot().stages} == {None}


@pytest.mark.parametrize("steps", [f'"step":{10**400},"steps":1', '"step":-1,"steps":4'])
def test_steps_that_no_engine_counts_are_refused(steps):
    with pytest.raises(ProtocolError, match="step"):
        decode(f'{{"type":"progress","stage":"recover","status":"running",{steps}}}'.encode())


def test_endless_stages_are_not_progress():
    board = ProgressBoard()
    with pytest.raises(ProtocolError):
        for number in range(MAX_STAGES + 1):
            board.apply(ProgressMessage(stage=f"stage{number}", status="running"))
    board = ProgressBoard()
    with pytest.raises(ProtocolError):
        for number in range(MAX_STAGE_CHANGES + 1):
            board.apply(ProgressMessage(stage=("plan", "apply")[number % 2], status="running"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_every_way_to_run_out_of_memory_is_called_that(error):
    assert describe(error).code is ErrorCode.out_of_memory


def test_other_errors_are_internal_whatever_they_call_themselves():
    posing = ValueError("x")
    posing.code = "no_such_code"
    for error in (posing, RuntimeError("shape mismatch"), KeyError("layer1")):
        assert describe(error).code is ErrorCode.internal


def test_a_runner_folder_is_removed_whatever_the_runner_did_to_it(tmp_path):
    policy = Policy(kind="process", uid=None, memory_bytes=2**30, file_bytes=2**30, gpu=False, hidden=())
    folder = make_folder(RunnerSpec(policy, tmp_path, threads=1))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    deep = folder / "output" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (folder / "output" / "link").symlink_to(outside)
    (folder / "tmp" / "loop").symlink_to(folder)
    os.mkfifo(folder / "output" / "pipe")
    deep.chmod(0)
    deep.parent.chmod(0o500)
    remove_folder(folder)
    assert not folder.exists()
    assert (outside / "kept").read_text() == "kept"
