"""Parquet datasets in the Hugging Face image layout: `image` = encoded bytes or a struct {bytes, path}, `label` = int.

Rows are streamed in small batches; other columns are never read. A column `split` names each row's split; without one
the caller says which split the file is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import first_line
from core.recovery.chunks import CHUNK_BYTES, TRAIN, Chunk, checked_labels, holds_controls, invalid_dataset, split_code
from core.recovery.encoded_images import ImageDecoder
from core.recovery.limits import decoded_limit_bytes

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
SPLIT_COLUMN = "split"
_MAX_BATCH_ROWS = 256
_MAX_METADATA_BYTES = 4 * 2**20
MAX_NAME_CHARACTERS = 255
_BUFFER_BYTES = 2**20


def read_parquet(file: BinaryIO, name: str, split: int | None, decoder: ImageDecoder) -> Iterator[Chunk]:
    """Stream the examples of one Parquet file called `name` in messages. Raises EngineError("dataset_invalid")."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        schema = parquet.schema_arrow
        image, label = _image_column(schema, name), _column(schema, LABEL_COLUMNS)
        class_names = _class_names(schema, label) if label else None
        has_splits = SPLIT_COLUMN in schema.names
        _require_bounded(parquet.metadata, name)
        columns = [image.path, *([label] if label else []), *([SPLIT_COLUMN] if has_splits else [])]
        row = 0
        for batch in parquet.iter_batches(batch_size=_batch_rows(parquet.metadata), columns=columns, use_threads=False):
            places = [f"{name}, row {row + i}" for i in range(len(batch))]
            labels = _labels(batch.column(label), class_names, name, row) if label else None
            if has_splits:
                names = batch.column(SPLIT_COLUMN).to_pylist()
                codes = np.array([split_code(value, name, row + i) for i, value in enumerate(names)], np.int8)
            else:
                codes = np.full(len(batch), TRAIN if split is None else split, np.int8)
            start = 0
            for images in decoder.decode(image.values(batch), places):
                part = slice(start, start + len(images))
                yield Chunk(images, labels[part] if label else None, codes[part], class_names)
                start += len(images)
            row += len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise invalid_dataset(
            f"{name}: the Parquet file cannot be read ({first_line(error)}); it may be damaged. Upload it again."
        ) from error
    if row == 0:
        raise invalid_dataset(f"{name}: the Parquet file holds no rows. Leave it out, or write its rows.")


class _ImageColumn:
    """Where the encoded bytes are: a binary column, or the field `bytes` of a struct."""

    def __init__(self, name: str, in_struct: bool) -> None:
        self._name = name
        self._in_struct = in_struct
        # Selecting the field alone leaves the struct's path column on the disk.
        self.path = f"{name}.bytes" if in_struct else name

    def values(self, batch: pa.RecordBatch) -> list[bytes | None]:
        column = batch.column(self._name)
        return (column.field("bytes") if self._in_struct else column).to_pylist()


def _image_column(schema: pa.Schema, source: str) -> _ImageColumn:
    name = _column(schema, IMAGE_COLUMNS)
    if name is None:
        raise invalid_dataset(
            f"{source}: no column `image`; the columns are {schema.names[:20]}. The Hugging Face image layout has "
            "`image` (encoded bytes, or {bytes, path}) and `label`."
        )
    kind = schema.field(name).type
    if _is_binary(kind):
        return _ImageColumn(name, in_struct=False)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type):
        return _ImageColumn(name, in_struct=True)
    raise invalid_dataset(
        f"{source}: column `{name}` is of type {str(kind)[:80]}; encoded images are needed, as binary or as a struct with "
        "a binary field `bytes`."
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _column(schema: pa.Schema, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _declared_bytes(metadata: pq.FileMetaData) -> int:
    return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))


def _require_bounded(metadata: pq.FileMetaData, source: str) -> None:
    declared_bytes, limit_bytes = _declared_bytes(metadata), decoded_limit_bytes()
    if declared_bytes > limit_bytes:
        raise invalid_dataset(
            f"{source}: {declared_bytes:,} bytes after decompression; this worker has room for {limit_bytes:,}. Use fewer "
            "or smaller images."
        )


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows whose encoded images are about CHUNK_BYTES."""
    bytes_per_row = _declared_bytes(metadata) // max(1, metadata.num_rows)
    return max(1, min(_MAX_BATCH_ROWS, CHUNK_BYTES // max(1, bytes_per_row)))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The label's names by Hugging Face's metadata (a ClassLabel feature); None where there are none or they are garbled."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    if not 0 < len(text) <= _MAX_METADATA_BYTES:
        return None
    try:
        found = json.loads(text)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    usable = isinstance(found, list) and all(isinstance(name, str) and not holds_controls(name) for name in found)
    return tuple(name[:MAX_NAME_CHARACTERS] for name in found) if found and usable else None


def _labels(column: pa.Array, class_names: tuple[str, ...] | None, source: str, first_row: int) -> np.ndarray:
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise invalid_dataset(f"{source}, row {first_row + row}: the label is missing. Give every row one, or none.")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        raise invalid_dataset(f"{source}: labels are of type {column.type}; integers from 0 are needed.")
    labels = checked_labels(column.to_numpy(zero_copy_only=False), source, first_row)
    if class_names is not None and (labels >= len(class_names)).any():
        row = int(np.argmax(labels >= len(class_names)))
        raise invalid_dataset(
            f"{source}, row {first_row + row}: label {labels[row]} has no name; the file's metadata names "
            f"{len(class_names)} classes. Correct the label, or the names."
        )
    return labels
