"""Parquet datasets in the Hugging Face image layout: `image` = encoded bytes or a struct {bytes, path}, `label` = int.

Rows are streamed in small batches; other columns are never read. A column `split` names each row's split; without one
the caller says which split the file is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.recovery.chunks import MAX_DECODED_BYTES, TRAIN, Chunk, checked_labels, invalid_dataset, split_code
from core.recovery.encoded_images import ImageDecoder

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
SPLIT_COLUMN = "split"
_BATCH_ROWS = 256
_BUFFER_BYTES = 2**20


def read_parquet(file: BinaryIO, name: str, split: int | None, decoder: ImageDecoder) -> Iterator[Chunk]:
    """Stream the examples of one Parquet file called `name` in messages. Raises EngineError("dataset_invalid")."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        schema = parquet.schema_arrow
        image, label = _image_column(schema, name), _column(schema, LABEL_COLUMNS)
        has_splits = SPLIT_COLUMN in schema.names
        _require_bounded(parquet.metadata, name)
        columns = [image.path, *([label] if label else []), *([SPLIT_COLUMN] if has_splits else [])]
        row = 0
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
            images = decoder.decode(image.values(batch), name, row)
            labels = _labels(batch.column(label), name, row) if label else None
            if has_splits:
                names = batch.column(SPLIT_COLUMN).to_pylist()
                codes = np.array([split_code(value, name, row + i) for i, value in enumerate(names)], np.int8)
            else:
                codes = np.full(len(images), TRAIN if split is None else split, np.int8)
            yield Chunk(images, labels, codes)
            row += len(images)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise invalid_dataset(f"{name}: the Parquet file cannot be read ({reason}).") from error
    if row == 0:
        raise invalid_dataset(f"{name}: the Parquet file holds no rows.")


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


def _require_bounded(metadata: pq.FileMetaData, source: str) -> None:
    declared_bytes = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if declared_bytes > MAX_DECODED_BYTES:
        raise invalid_dataset(
            f"{source}: {declared_bytes:,} bytes after decompression; the limit is {MAX_DECODED_BYTES:,}."
        )


def _labels(column: pa.Array, source: str, first_row: int) -> np.ndarray:
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise invalid_dataset(f"{source}, row {first_row + row}: the label is missing.")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        raise invalid_dataset(f"{source}: labels are of type {column.type}; integers from 0 are needed.")
    return checked_labels(column.to_numpy(zero_copy_only=False), source, first_row)
