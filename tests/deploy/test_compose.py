"""The compose files: every setting exists, every reference resolves, nothing is open to the world, no password is ours."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from store.settings import Settings

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "docker-compose.yml"
EMBEDDED = ROOT / "docker" / "compose.embedded.yml"
GPU = ROOT / "docker" / "compose.gpu.yml"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
TARGETS = set(re.findall(r"(?m)^FROM \S+ AS (\S+)$", DOCKERFILE))
SETTINGS = {f"PENNYWEIGHT_{name.upper()}" for name in Settings.model_fields}
OURS = ("pennyweight-api", "pennyweight-worker", "pennyweight-worker-cuda")
PASSWORDS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_KEY", "METRICS_TOKEN"}


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def services(path: Path) -> dict[str, dict]:
    return load(path)["services"]


BOTH = pytest.mark.parametrize("path", [FLEET, EMBEDDED], ids=["fleet", "embedded"])


@BOTH
def test_every_variable_that_is_set_is_a_setting(path):
    text = path.read_text()
    used = set(re.findall(r"\bPENNYWEIGHT_\w+", text))
    assert used <= SETTINGS
    for service in services(path).values():
        if service["image"] in OURS:
            values = {key.removeprefix("PENNYWEIGHT_").lower(): value for key, value in _environment(service).items()}
            Settings(**{name: value for name, value in values.items() if name in Settings.model_fields})


@BOTH
def test_everything_that_is_referred_to_is_there(path):
    document = load(path)
    for name, service in document["services"].items():
        assert set(service.get("depends_on", {})) <= set(document["services"]), name
        for other, how in service.get("depends_on", {}).items():
            waits_for_the_end = how["condition"] == "service_completed_successfully"
            assert waits_for_the_end == ("restart" not in document["services"][other]), (name, other)
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in document["volumes"], name
        if service["image"] in OURS:
            build = service["build"]
            assert ((path.parent / build["context"]).resolve(), build["target"] in TARGETS) == (ROOT, True), name
            assert (ROOT / build["dockerfile"]).is_file()
            assert service["image"] == f"pennyweight-{build['target']}"


@BOTH
def test_ports_are_on_loopback_and_every_server_has_a_health_check(path):
    for name, service in services(path).items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        once = "restart" not in service
        assert once == (service.get("healthcheck") == {"disable": True}), name
        of_its_image = service["image"] in OURS and "HEALTHCHECK" in DOCKERFILE
        assert once or of_its_image or service["healthcheck"]["test"], name
        if service["image"] in OURS:
            assert service["cap_drop"] == ["ALL"], name


def test_images_of_others_have_a_version():
    for name, service in services(FLEET).items():
        if service["image"] not in OURS:
            assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", service["image"]), name


def test_without_passwords_nothing_starts_and_the_script_makes_them(tmp_path):
    text = FLEET.read_text()
    for password in PASSWORDS:
        assert f"${{{password}:?run docker/secrets.sh first}}" in text
        assert not re.search(rf"\$\{{{password}(:-[^}}]*)?\}}", text)
    folder = tmp_path / "docker"
    folder.mkdir()
    (folder / "secrets.sh").write_text((ROOT / "docker" / "secrets.sh").read_text())
    for _ in range(2):
        subprocess.run(["sh", folder / "secrets.sh"], check=True, capture_output=True)
        written = (tmp_path / ".env").read_text()
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    values = dict(line.split("=", 1) for line in written.splitlines())
    assert set(values) == PASSWORDS
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in values.values())
    assert len(set(values.values())) == len(PASSWORDS)
    subprocess.run(["sh", folder / "secrets.sh"], check=True, capture_output=True)
    assert (tmp_path / ".env").read_text() == written


def test_gpu_file_changes_only_services_that_are_there():
    base, override = services(FLEET), services(GPU)
    assert set(override) <= set(base)
    assert override["worker"]["build"]["target"] in TARGETS


def _environment(service: dict) -> dict[str, str]:
    """With passwords as docker/secrets.sh makes them, and defaults applied."""
    return {
        key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", re.sub(r"\$\{\w+:\?[^}]*\}", "c0ffee", str(value)))
        for key, value in (service.get("environment") or {}).items()
    }
