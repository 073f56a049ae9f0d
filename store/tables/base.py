"""What every table shares: the names of constraints, the types of columns, the values that a column may hold."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import JSON, CheckConstraint, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase

from store.contract import InspectionStatus, JobStatus, PlanStatus, WorkKind
from store.dialect import EnumText, UtcDateTime

Id = String(32)
"""A prefix and a ULID; or a tenant's name."""


class WorkState(StrEnum):
    queued = "queued"
    running = "running"
    done = "done"


class Scope(StrEnum):
    """What a key may do; each includes those before it. `admin` is for webhooks and their secrets."""

    read = "read"
    write = "write"
    admin = "admin"

    def includes(self, other: Scope) -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(other)


class EndpointStatus(StrEnum):
    active = "active"
    disabled = "disabled"


class DeliveryStatus(StrEnum):
    pending = "pending"
    delivered = "delivered"
    failed = "failed"


def one_of(column: str, enum: type[StrEnum]) -> CheckConstraint:
    """A column that holds the members of `enum` and nothing else."""
    values = ", ".join(f"'{member.value}'" for member in enum)
    return CheckConstraint(f"{column} IN ({values})", name=f"{column}_known")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text(),
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[int]: JSON(none_as_null=True),
        list[float]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        list[int] | dict[str, list[int]]: JSON(none_as_null=True),
        JobStatus: EnumText(JobStatus),
        InspectionStatus: EnumText(InspectionStatus),
        PlanStatus: EnumText(PlanStatus),
        WorkKind: EnumText(WorkKind),
        WorkState: EnumText(WorkState),
        Scope: EnumText(Scope),
        EndpointStatus: EnumText(EndpointStatus),
        DeliveryStatus: EnumText(DeliveryStatus),
    }
