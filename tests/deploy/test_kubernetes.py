"""The Kubernetes manifests: valid, closed down, and about settings, secrets and commands that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pennyweightd.__main__ import app
from store.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUBERNETES = "1.34"
OF_KEDA = "keda.sh/v1alpha1"


def documents() -> Iterator[tuple[str, dict]]:
    """Every resource that the kustomizations name."""
    for kustomization in sorted(FOLDER.glob("*/kustomization.yaml")):
        for name in yaml.safe_load(kustomization.read_text())["resources"]:
            if name.endswith(".yaml"):
                for document in yaml.safe_load_all((kustomization.parent / name).read_text()):
                    yield (
                        f"{kustomization.parent.name}/{name}:{document['kind']}:{document['metadata']['name']}",
                        document,
                    )


ALL = dict(documents())
PODS = {
    name: document["spec"]["template"] for name, document in ALL.items() if document["kind"] in ("Deployment", "Job")
}


def containers() -> Iterator[tuple[str, dict]]:
    for name, pod in PODS.items():
        for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
            yield f"{name}:{container['name']}", container


CONTAINERS = dict(containers())


def test_every_file_is_named_by_a_kustomization():
    named = {name.split(":")[0] for name in ALL}
    there = {f"{path.parent.name}/{path.name}" for path in FOLDER.glob("*/*.yaml")}
    assert there - named == {"base/kustomization.yaml", "gpu/kustomization.yaml"}


@pytest.mark.parametrize("name", [name for name, document in ALL.items() if document["apiVersion"] != OF_KEDA])
def test_resources_are_what_kubernetes_takes(name):
    kubernetes_validate.validate(ALL[name], KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_meet_the_restricted_standard_and_hold_no_token(name):
    spec = PODS[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} == {"emptyDir"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_can_write_nowhere_but_in_their_volumes_and_gain_nothing(name):
    container = CONTAINERS[name]
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}
    assert container["resources"]["limits"]["memory"]
    assert container["image"] in re.findall(r"-t (\S+)", (ROOT / "docker" / "Dockerfile").read_text())


def test_user_of_the_pods_is_the_user_of_the_images():
    users = set(re.findall(r"(?m)^USER (\d+):(\d+)$", (ROOT / "docker" / "Dockerfile").read_text()))
    for pod in PODS.values():
        security = pod["spec"]["securityContext"]
        assert users == {(str(security["runAsUser"]), str(security["runAsGroup"]))}


def test_settings_exist_and_are_valid():
    lines = [line.split("=", 1) for line in (FOLDER / "base" / "settings.env").read_text().splitlines() if line]
    values = {key.removeprefix("PENNYWEIGHT_").lower(): value for key, value in lines}
    assert set(values) <= set(Settings.model_fields)
    Settings(**values)


def test_every_pod_takes_its_settings_from_the_same_two_places():
    sources = [{"configMapRef": {"name": "pennyweight"}}, {"secretRef": {"name": "pennyweight"}}]
    assert all(container["envFrom"] == sources for container in CONTAINERS.values())


def test_whatever_scales_or_selects_something_selects_something_that_is_there():
    deployments = {
        document["metadata"]["name"]: document for document in ALL.values() if document["kind"] == "Deployment"
    }
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    for name, document in ALL.items():
        if "scaleTargetRef" in document["spec"] if "spec" in document else False:
            assert document["spec"]["scaleTargetRef"]["name"] in deployments, name
        selector = document.get("spec", {}).get("podSelector") or document.get("spec", {}).get("selector") or {}
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= one.items() for one in labels), name
    for deployment in deployments.values():
        assert "replicas" not in deployment["spec"], "what is scaled must not be reset by the next apply"


def test_network_is_closed_to_workers_beside_their_backends():
    policies = {
        document["metadata"]["name"]: document["spec"]
        for document in ALL.values()
        if document["kind"] == "NetworkPolicy"
    }
    assert policies["nothing-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports = {port["port"] for rule in policies["backends"]["egress"] for port in rule["ports"]}
    assert ports == {53, 5432, 6379, 443, 8333}
    assert all("to" in rule for rule in policies["backends"]["egress"])
    opened = {name for name, spec in policies.items() if spec.get("ingress")}
    assert opened == {"api"}


def test_only_the_api_reaches_addresses_elsewhere_and_no_private_ones():
    blocks = {
        document["metadata"]["name"]: peer["ipBlock"]
        for document in ALL.values()
        if document["kind"] == "NetworkPolicy"
        for rule in document["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    }
    assert set(blocks) == {"api"}
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(blocks["api"]["except"])


def test_commands_of_the_containers_are_commands_of_the_program():
    given = [container["args"][0] for container in CONTAINERS.values() if "args" in container]
    given += [
        probe["exec"]["command"][1]
        for container in CONTAINERS.values()
        for kind, probe in container.items()
        if kind.endswith("Probe") and "exec" in probe
    ]
    named = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(given) <= named | {group.name for group in app.registered_groups}
