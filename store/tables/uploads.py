"""Files that tenants bring: models, datasets, and uploads in parts that become one of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from store.contract import InspectionStatus
from store.tables.base import Base, Id, one_of


class UploadedFile:
    """What models and datasets have in common: a file as it came, and how far its inspection is."""

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    name: Mapped[str]
    filename: Mapped[str]
    object_key: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[InspectionStatus]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class Model(UploadedFile, Base):
    __tablename__ = "models"
    __table_args__ = (Index(None, "tenant_id", "id"), one_of("status", InspectionStatus))

    format: Mapped[str | None] = mapped_column(String(16))
    architecture: Mapped[str | None]
    architecture_args: Mapped[dict[str, Any]]
    input_shape: Mapped[list[int] | dict[str, list[int]] | None] = mapped_column(JSON(none_as_null=True))
    profile: Mapped[dict[str, Any] | None]


class Dataset(UploadedFile, Base):
    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant_id", "id"), one_of("status", InspectionStatus))

    normalization: Mapped[dict[str, Any] | None]
    scale: Mapped[float | None]
    convert: Mapped[dict[str, Any] | None]
    format: Mapped[str | None] = mapped_column(String(32))
    classes: Mapped[int | None]
    class_names: Mapped[list[str] | None]
    splits: Mapped[dict[str, Any] | None]
    class_counts: Mapped[dict[str, Any] | None]
    image_shape: Mapped[list[int] | None]
    mean: Mapped[list[float] | None]
    std: Mapped[list[float] | None]


class Upload(Base):
    """A file on its way here in parts. `resource_id` is the model or dataset that it becomes, with `fields`, when it is
    completed; `handle` is the object store's own name for the parts."""

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "tenant_id", "id"), Index(None, "expires_at"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Id, ForeignKey("tenants.id"))
    purpose: Mapped[str] = mapped_column(String(16))
    resource_id: Mapped[str] = mapped_column(Id)
    filename: Mapped[str]
    fields: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    part_size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    object_key: Mapped[str]
    handle: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
