"""Files of datasets, right and wrong ones, for the tests that read them."""

import io
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.errors import EngineError
from core.recovery import load_dataset


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def shard(images, labels, *, struct=False, **columns):
    """A Parquet file in the Hugging Face layout, as bytes."""
    encoded = [image if isinstance(image, bytes) else encode(image) for image in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
    image_column = pa.array([{"bytes": data, "path": None} for data in encoded] if struct else encoded, kind)
    table = {"image": image_column, "name": pa.array(["x"] * len(encoded))}
    if labels is not None:
        table["label"] = pa.array(labels)
    buffer = io.BytesIO()
    pq.write_table(pa.table({**table, **columns}), buffer)
    return buffer.getvalue()


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def npy(descr, shape, data=b""):
    """An `.npy` member with any header."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def npz_of(folder, method=zipfile.ZIP_STORED, **members):
    """An `.npz` file of raw members."""
    path = folder / "made.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def refused(path, *words, read=load_dataset, **options):
    with pytest.raises(EngineError) as caught:
        read(path, **options)
    assert caught.value.code == "dataset_invalid"
    for word in words:
        assert word in caught.value.message
    return caught.value.message
