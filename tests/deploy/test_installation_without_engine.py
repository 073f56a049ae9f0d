"""`pip install pennyweight-server` is the service alone: it runs, and says what is missing where the engine is needed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The modules of the extra `engine`, under their import names.
ENGINE = ("torch", "torchvision", "timm", "numpy", "scipy", "safetensors", "onnx", "onnxscript", "onnxruntime")
DATA = ("pyarrow", "PIL")
WITHOUT_ENGINE = f"import sys; sys.modules.update(dict.fromkeys({(*ENGINE, *DATA)!r})); "


def pennyweightd(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"{WITHOUT_ENGINE}sys.argv = ['pennyweightd', *{arguments!r}]; from pennyweightd.__main__ import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def names(requirements: list[str]) -> set[str]:
    return {requirement.split(">")[0].split("=")[0].split("[")[0] for requirement in requirements}


def test_the_engine_is_an_extra_and_the_list_above_is_all_of_it():
    engine = {name.replace("pillow", "PIL") for name in names(PROJECT["optional-dependencies"]["engine"])}
    assert engine == {*ENGINE, *DATA}
    assert not engine & names(PROJECT["dependencies"])


def test_keys_and_migrations_need_no_engine(tmp_path):
    data = str(tmp_path / "data")
    assert pennyweightd("version").stdout.startswith("pennyweightd ")
    assert pennyweightd("migrate", "--data-dir", data).stdout == "The database is up to date.\n"
    assert pennyweightd("keys", "create", "ci", "--data-dir", data).stdout.startswith("pw_live_")


def test_the_api_and_its_S3_driver_need_no_engine():
    code = WITHOUT_ENGINE + "import api.app, pennyweightd.server, store.s3, worker.supervisor; print('there')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "there", done.stderr


@pytest.mark.parametrize("command", [("serve",), ("compress", "net.pt", "--flops", "50%")])
def test_what_needs_the_engine_says_how_to_get_it(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = pennyweightd(*command)
    assert done.returncode != 0
    assert "pip install 'pennyweight-server[engine]'" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
