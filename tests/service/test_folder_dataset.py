"""An archive of class folders over HTTP: uploaded, looked into, and used to bring a network's accuracy back."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from pennyweight import Client, JobFailed
from PIL import Image
from safetensors.torch import save_file

from examples.demo import train
from tests.service.conftest import ARGS, Digits
from tests.service.test_command_line import run

# Sorted, they are in the order of the digits that they show.
NAMES = ("0 nought", "1 one", "2 two")
FOLDERS = {"train": "train", "val": "validation", "test": "test"}


@pytest.fixture(scope="module")
def folders(digits_files: Digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """A checkpoint that knows three digits; a zip of their images as colour pictures; how many there are per class."""
    folder = tmp_path_factory.mktemp("folders")
    chosen = digits_files.labels < len(NAMES)
    images, labels, split = digits_files.images[chosen], digits_files.labels[chosen], digits_files.split[chosen]
    torch.manual_seed(0)
    save_file(train(images, labels, split, {**ARGS, "num_classes": len(NAMES)}), folder / "three.safetensors")
    counts = {name: [0] * len(NAMES) for name in FOLDERS}
    with zipfile.ZipFile(folder / "digits.zip", "w") as archive:
        for index, (image, label, name) in enumerate(zip(images, labels, split, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image[0]).convert("RGB").save(buffer, "PNG")
            archive.writestr(f"digits/{FOLDERS[name]}/{NAMES[label]}/{index}.png", buffer.getvalue())
            counts[name][label] += 1
    return folder / "three.safetensors", folder / "digits.zip", counts


def test_class_folders_from_upload_to_recovered_accuracy(client: Client, folders):
    checkpoint, archive, counts = folders
    dataset = client.wait_inspected(client.upload_dataset(archive, convert={"color": "grey"}))
    assert (dataset["format"], dataset["classes"], dataset["class_names"]) == ("folder_zip", 3, list(NAMES))
    assert dataset["image_shape"] == [1, 8, 8] and dataset["convert"] == {"color": "grey"}
    assert dataset["splits"] == {name: sum(per_class) for name, per_class in counts.items()}
    assert dataset["class_counts"] == {
        name: {"min": min(per_class), "max": max(per_class), "counts": per_class} for name, per_class in counts.items()
    }
    model = client.upload_model(checkpoint, architecture="cifar_resnet", input_shape=[1, 8, 8])
    job = client.create_job(
        model["id"], {"macs": {"max_ratio": 0.3}}, dataset=dataset["id"], recovery={"epochs": 2}, outputs=["report"]
    )
    result = client.wait(job["id"], timeout_s=300)["result"]
    assert result["met"]
    assert result["baseline"]["accuracy"] > 0.95
    assert result["compressed"]["accuracy"] > result["baseline"]["accuracy"] - 0.05


def test_pictures_that_the_network_cannot_take_are_refused_with_the_way_out(client: Client, folders):
    checkpoint, archive, _ = folders
    job = client.submit(
        checkpoint,
        {"budget": {"macs": {"max_ratio": 0.5}}},
        architecture="cifar_resnet",
        input_shape=[1, 8, 8],
        dataset_path=archive,
    )
    with pytest.raises(JobFailed) as caught:
        client.wait(job["id"], timeout_s=120)
    assert caught.value.code == "dataset_invalid"
    assert "3×8×8" in str(caught.value) and '"color": "grey"' in str(caught.value)


@pytest.mark.parametrize("program", ["pennyweight", "pennyweightd"])
def test_both_command_lines_convert_when_asked(service_url: str, folders, tmp_path, program):
    checkpoint, archive, _ = folders
    options = ["--architecture", "cifar_resnet", "--input-shape", "1x8x8", "--macs", "40%", "--epochs", "0"]
    dataset = ["--dataset", archive, "--convert", "grey", "--outputs", "report", "-o", tmp_path / "out", "--json"]
    done = run(program, "compress", checkpoint, *options, *dataset, url=service_url)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    result = document if program == "pennyweightd" else document["result"]
    assert result["met"] and result["baseline"]["accuracy"] > 0.95


def test_a_member_that_is_no_image_is_named_on_the_rejected_dataset(client: Client, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("cat", "dog"):
            archive.writestr(f"{name}/1.png", b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(JobFailed) as caught:
        client.wait_inspected(client.upload_dataset(tmp_path / "set.zip"))
    assert caught.value.code == "dataset_invalid" and "cat/1.png" in str(caught.value)
