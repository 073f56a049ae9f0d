"""A runner's command table whose tasks do what the uploaded file says: `{"do": "loop"}`.

The files are tiny Python-free scripts for the real runner, its real confinement and the real pipe; only the engine is
left out, so that a test can have exactly the trouble that it is about.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from store.contract import TrainingEpoch
from worker.protocol import (
    CHECKPOINT_FILE,
    OUTPUT_FOLDER,
    CheckpointMessage,
    EpochMessage,
    ProgressMessage,
    ResumedMessage,
)

MEASURED = {
    "params": 10,
    "macs": 20,
    "flops": 40,
    "weight_bytes": 40,
    "peak_activation_bytes": 80,
    "memory_bytes": 120,
    "size_bytes": 50,
}


class RefusedByEngine(Exception):
    """Shaped like the engine's error, which cannot be imported without torch."""

    def __init__(self, code: str, message: str, details: dict) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.details = code, message, None, details


class ProcessLost(Exception):
    """Shaped like the engine's, of a training whose second process was killed."""

    signal_number = int(signal.SIGKILL)


def prepare() -> None:
    """Nothing to import."""


def run(task, folder: Path, tell):
    script = json.loads((folder / task.model.file).read_text())
    tell(ProgressMessage(stage="intake", status="running"))
    action = globals()[f"do_{script['do']}"]
    return action(script, folder, tell) or result(folder)


def inspect_dataset(task, folder: Path, tell):
    return {"format": "npz", "classes": 2, "splits": {"train": 8}, "image_shape": [1, 8, 8], "mean": [0], "std": [1]}


def catalogue(task, folder: Path, tell):
    method = {"type": "auto", "title": "Auto", "description": "What the script says.", "schema": {"type": "object"}}
    return {"version": "test", "methods": [method], "architectures": [], "devices": ["cpu"], "versions": {}}


def inspect_model(task, folder: Path, tell):
    script = json.loads((folder / task.model.file).read_text())
    if script["do"].startswith("inspect_"):
        script["do"] = script["do"].removeprefix("inspect_")
        globals()[f"do_{script['do']}"](script, folder, tell)
    profile = {key: value for key, value in MEASURED.items() if key != "size_bytes"}
    return {
        "format": "state_dict",
        "architecture": "cifar_resnet",
        "architecture_args": {},
        "input_shape": [1, 8, 8],
        "profile": {**profile, "layers": []},
    }


def make_plan(task, folder: Path, tell):
    script = json.loads((folder / task.model.file).read_text())
    tell(ProgressMessage(stage="plan", status="running"))
    if script["do"] != "succeed":
        globals()[f"do_{script['do']}"](script, folder, tell)
    costs = {key: value for key, value in MEASURED.items() if key != "size_bytes"}
    widths = {layer.name: layer.out for layer in task.request.plan.layers} if task.request.plan else {}
    layer = {"name": "conv1", "before": {"out": 16}, "after": {"out": widths.get("conv1", 9)}}
    return {
        "feasible": True,
        "predicted": costs,
        "baseline": costs,
        "constraints": [],
        "layers": [{**layer, "min": 4, "max": 16, "group": "conv1"}],
        "frozen": [],
        "smallest": None,
        "note": "",
        "error": None,
    }


COMMANDS = {
    "job": run,
    "plan": make_plan,
    "inspect_model": inspect_model,
    "inspect_dataset": inspect_dataset,
    "catalogue": catalogue,
}


def result(folder: Path, **changes):
    artifacts = []
    for path in sorted((folder / OUTPUT_FOLDER).iterdir()):
        if path.is_file() and not path.is_symlink():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            media_type = "application/octet-stream"
            artifacts.append(
                {"name": path.name, "media_type": media_type, "size": path.stat().st_size, "sha256": digest}
            )
    return {
        "met": True,
        "constraints": [],
        "baseline": MEASURED,
        "compressed": MEASURED,
        "equivalence": None,
        "layers": [],
        "frozen": [],
        "artifacts": artifacts,
        "provenance": {},
        **changes,
    }


def do_succeed(script, folder, tell):
    for stage in ("plan", "deliver"):
        tell(ProgressMessage(stage=stage, status="running", step=1, steps=2))
    (folder / OUTPUT_FOLDER / "model.bin").write_bytes(b"smaller")


def do_wait(script, folder, tell):
    """Work for a while, in steps."""
    steps = int(script["seconds"] / 0.1)
    for step in range(steps):
        tell(ProgressMessage(stage="recover", status="running", step=step, steps=steps, message=f"Step {step}"))
        time.sleep(0.1)


def do_epochs(script, folder, tell):
    """Tell of many epochs at once; `wrong`: what the last one says instead."""
    told = {"loss": 0.5, "train_accuracy": 0.9, "validation_accuracy": 0.8, "learning_rate": 0.01}
    times = {"images_per_s": 1000.0, "seconds": 0.1, "eta_s": 1.0}
    tell(ProgressMessage(stage="recover", status="running", step=1, steps=2))
    for epoch in range(1, script["epochs"] + 1):
        tell(EpochMessage(epoch=TrainingEpoch(epoch=epoch, epochs=script["epochs"], **told, **times)))
    if "wrong" in script:
        sane = TrainingEpoch(epoch=1, epochs=1, **told, **times)
        tell(EpochMessage.model_construct(epoch=sane.model_copy(update=script["wrong"])))
    tell(ProgressMessage(stage="deliver", status="running"))


def do_train(script, folder, tell):
    """Count to `steps`, keeping the count every `every` steps and when asked; each step takes `step_s`. The log of a run
    is in its result: where it began, and where it was asked.

    die_at: crashes there; at_first_only: but not when it goes on from a checkpoint. silent: does not keep anything by
    itself. grow_to: how many bytes a checkpoint has.
    """
    place = folder / CHECKPOINT_FILE
    began = step = 0
    if place.exists():
        began = step = int(place.read_bytes().split()[0])
        tell(ResumedMessage(step="recover_0/training", number=step))
    tell(ProgressMessage(stage="recover", status="running", step=step, steps=script["steps"]))
    tell(CheckpointMessage(state="possible"))
    while step < script["steps"]:
        step += 1
        time.sleep(script.get("step_s", 0.02))
        tell(ProgressMessage(stage="recover", status="running", step=step, steps=script["steps"]))
        if step == script.get("die_at") and not (began and script.get("at_first_only")):
            do_segfault(script, folder, tell)
        asked = tell.checkpoint_asked.is_set()
        if asked or (step % script.get("every", 5) == 0 and not script.get("silent")):
            beside = place.with_suffix(".new")
            beside.write_bytes(str(step).encode().ljust(script.get("grow_to", 16)))
            beside.replace(place)
            tell.checkpoint_asked.clear()
            tell(CheckpointMessage(state="written"))
            if asked:
                time.sleep(30)  # the supervisor ends us
    return result(folder, provenance={"began": began, "ended": step})


def do_checkpoint_trick(script, folder, tell):
    """Offer as a checkpoint what is none of ours, and go on."""
    place = folder / CHECKPOINT_FILE
    place.symlink_to(script["target"])
    tell(CheckpointMessage(state="written"))
    time.sleep(0.5)


def do_loop(script, folder, tell):
    while True:
        pass


def do_ignore_sigterm(script, folder, tell):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def do_lose_a_process(script, folder, tell):
    raise ProcessLost


def do_refuse(script, folder, tell):
    raise RefusedByEngine("target_infeasible", "The cap cannot be reached.", {"smallest": {"params": 7}})


def do_miss(script, folder, tell):
    best = result(folder, met=False)
    raise RefusedByEngine("target_unmet", "Nearly.", {"result": best})


def do_raise(script, folder, tell):
    raise ValueError("a secret detail of the code")


def do_nan(script, folder, tell):
    return result(folder, provenance={"loss": float("nan")})


def do_segfault(script, folder, tell):
    import ctypes

    print("about to touch address 0", flush=True)
    ctypes.string_at(0)


def do_exit(script, folder, tell):
    print("ended on purpose", file=sys.stderr, flush=True)
    os._exit(7)


def do_memory_bomb(script, folder, tell):
    held = []
    while True:
        held.append(bytearray(2**26))


def do_fill_disk(script, folder, tell):
    path = folder / ("output" if script.get("in_output") else "tmp") / "deep" / "er"
    path.mkdir(parents=True)
    number = 0
    while True:
        (path / f"{number}").write_bytes(bytes(2**20))
        number += 1
        time.sleep(0.005)


def do_full_disk(script, folder, tell):
    raise OSError(28, "No space left on device", "/a/path/of/the/server")


def do_fork_bomb(script, folder, tell):
    children = 0
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        children += 1


def do_garbage(script, folder, tell):
    os.write(message_fd(), b"\x00\xffnot a message\n")
    time.sleep(30)


def do_huge_line(script, folder, tell):
    while True:
        os.write(message_fd(), b"x" * 65536)


def do_wrong_result(script, folder, tell):
    return {"met": "perhaps"}


def do_link(script, folder, tell):
    (folder / OUTPUT_FOLDER / "model.bin").symlink_to(script["target"])
    return result(folder)


def do_wrong_digest(script, folder, tell):
    (folder / OUTPUT_FOLDER / "model.bin").write_bytes(b"smaller")
    wrong = result(folder)
    wrong["artifacts"][0]["sha256"] = "0" * 64
    return wrong


def do_chatter(script, folder, tell):
    for number in range(20_000):
        print("noise", number)
    print("the last line", flush=True)
    raise ValueError("now it matters")


def do_explore(script, folder, tell):
    """What a task that was taken over could see and touch; the answers go into the result."""
    answers = {"environment": sorted(os.environ), "uid": os.getuid(), "pids": _pids()}
    for name in ("secret", "database", "other_upload"):
        answers[f"reads_{name}"] = _tries(lambda path=script[name]: Path(path).read_bytes())
    answers["writes_outside"] = _tries(lambda: Path(script["outside"]).write_text("was here"))
    answers["could_write_code"] = os.access(script["code"], os.W_OK)
    answers["connects"] = _tries(lambda: socket.create_connection(("127.0.0.1", script["port"]), timeout=2).close())
    answers["parent_environment"] = _tries(lambda: Path(f"/proc/{script['server_pid']}/environ").read_bytes())
    answers["status"] = Path("/proc/self/status").read_text()
    return result(folder, provenance=answers)


def message_fd() -> int:
    """The descriptor of the messages, as a task that was taken over would find it: the pipe beside the standard three."""
    for number in range(3, 64):
        link = Path(f"/proc/self/fd/{number}")
        if link.is_symlink() and str(link.readlink()).startswith("pipe:"):
            return number
    raise AssertionError("no pipe")


def _pids() -> list[int]:
    return sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _tries(action) -> bool:
    try:
        action()
    except OSError:
        return False
    return True
