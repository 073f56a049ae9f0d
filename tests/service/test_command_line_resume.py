"""`pennyweightd compress`, interrupted and given again, goes on; its checkpoint is there for as long as it is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.service.conftest import ARGS, Digits

PROGRAM = Path(sys.executable).parent / "pennyweightd"


def test_an_interrupted_command_given_again_goes_on_and_leaves_only_its_artifacts(digits_files: Digits, tmp_path):
    def compress(flops: str = "50%") -> subprocess.Popen[str]:
        shape = ["--architecture", "cifar_resnet", "--architecture-args", json.dumps(ARGS), "--input-shape", "1x8x8"]
        arguments = [str(digits_files.checkpoint), "--dataset", str(digits_files.dataset), *shape, "--flops", flops]
        arguments += ["--epochs", "25", "--outputs", "safetensors", "-o", str(tmp_path / "out")]
        return subprocess.Popen(
            [PROGRAM, "compress", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    checkpoint = tmp_path / ".out.checkpoint"
    first = compress()
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130 and "goes on from its last checkpoint" in said
    assert checkpoint.exists() and not (tmp_path / "out").exists()

    again = compress()
    _, said = again.communicate(timeout=180)
    assert again.returncode == 0, said
    assert "Going on" in said
    assert (tmp_path / "out" / "model.safetensors").exists() and not checkpoint.exists()
