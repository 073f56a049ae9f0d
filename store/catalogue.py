"""The catalogue: what the workers said they can do, so that the API can answer and validate without the engine."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from datetime import timedelta
from typing import TypeVar

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from store import dialect
from store.contract import Catalogue
from store.tables import Worker

Item = TypeVar("Item")

KEPT_FOR = timedelta(days=30)
"""Workers that have been silent for so long are forgotten at the next publication."""


class CatalogueRepository:
    """Catalogues belong to the installation, not to a tenant."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def publish(self, worker_id: str, catalogue: Catalogue) -> None:
        """Insert or replace what `worker_id` offers."""
        now = dialect.now(self._session)
        self._session.execute(delete(Worker).where(Worker.seen_at < now - KEPT_FOR))
        self._session.merge(
            Worker(
                id=worker_id,
                version=catalogue.version,
                catalogue=catalogue.model_dump(mode="json", by_alias=True),
                published_at=now,
                seen_at=now,
            )
        )
        self._session.flush()

    def seen(self, worker_id: str) -> None:
        """Note that `worker_id` is there; nothing before it has published."""
        self._session.execute(update(Worker).where(Worker.id == worker_id).values(seen_at=dialect.now(self._session)))

    def silent_for_s(self, owner: str = "") -> float | None:
        """Seconds since any worker (whose id begins with `owner`) last said that it is there; None before the first."""
        mine = Worker.id.startswith(owner, autoescape=True)
        last = self._session.scalar(select(func.max(Worker.seen_at)).where(mine))
        return None if last is None else max(0.0, (dialect.now(self._session) - last).total_seconds())

    def stamp(self) -> Hashable:
        """Equal as long as `current` is: what was published when, without reading the catalogues themselves."""
        published = select(Worker.id, Worker.version, Worker.published_at)
        return tuple(map(tuple, self._session.execute(published.order_by(Worker.id))))

    def current(self) -> Catalogue | None:
        """The newest catalogue, with what other workers of the same version add to it; None before the first worker."""
        workers = self._session.scalars(select(Worker).order_by(Worker.published_at.desc(), Worker.id)).all()
        if not workers:
            return None
        catalogues = [Catalogue.model_validate(w.catalogue) for w in workers if w.version == workers[0].version]
        return catalogues[0].model_copy(
            update={
                "methods": _merged((c.methods for c in catalogues), lambda method: method.type),
                "architectures": _merged((c.architectures for c in catalogues), lambda architecture: architecture.name),
                "devices": _merged((c.devices for c in catalogues), lambda device: device),
            }
        )


def _merged(lists: Iterable[list[Item]], key: Callable[[Item], Hashable]) -> list[Item]:
    first: dict[Hashable, Item] = {}
    for items in lists:
        for item in items:
            first.setdefault(key(item), item)
    return list(first.values())
