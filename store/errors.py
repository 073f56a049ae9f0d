"""Everything the store refuses, as one small family of exceptions. The API turns each into a problem document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store.contract import ErrorInfo


class StoreError(Exception):
    """Base of all refusals; `str()` is a sentence for a person."""


class NotFound(StoreError):
    """No such thing in this tenant: unknown and foreign ids look the same. `param` is a JSON pointer, if a field named it."""

    def __init__(self, resource: str, id: str, param: str | None = None) -> None:
        super().__init__(f"No {resource} with the id {id!r}.")
        self.resource = resource
        self.id = id
        self.param = param


class Conflict(StoreError):
    """The thing exists, but its state does not allow this. `code` is stable, and one of the API's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class IdempotencyKeyReused(StoreError):
    """A key that stands for another request: other body, other route."""

    def __init__(self, key: str) -> None:
        super().__init__(f"The Idempotency-Key {key!r} was used for another request. Use a new key for a new request.")


class RequestInFlight(StoreError):
    """The first request with this key has not been answered yet."""

    def __init__(self, key: str) -> None:
        super().__init__(f"A request with the Idempotency-Key {key!r} is being worked on. Ask again in a moment.")


@dataclass(frozen=True)
class QuotaUse:
    """How far a tenant is with one of its limits (`store.quotas.LIMITS`), and how much more a request would take."""

    name: str
    limit: int
    used: int
    requested: int


class QuotaExceeded(StoreError):
    """The tenant has used up what it may have. The message says what to do."""

    def __init__(self, message: str, use: QuotaUse) -> None:
        super().__init__(message)
        self.use = use


class TooManyJobs(QuotaExceeded):
    """The tenant has as many jobs at work as it may have; one of them will end."""


class UploadRejected(StoreError):
    """A job names an upload that inspection has already rejected; `error` says why, `param` is the request's field."""

    resource: str
    param: str

    def __init__(self, id: str, error: ErrorInfo) -> None:
        super().__init__(f"The {self.resource} {id} was rejected ({error.code}): {error.message}")
        self.id = id
        self.error = error


class ModelRejected(UploadRejected):
    resource = "model"
    param = "/model"


class DatasetRejected(UploadRejected):
    resource = "dataset"
    param = "/dataset"


class DatasetUnlabelled(StoreError):
    """A request needs labels, and inspection found none in its dataset. `fields` are the request's that need them."""

    def __init__(self, id: str, fields: Sequence[str]) -> None:
        super().__init__(
            f"The dataset {id} has no labels, and {' and '.join(fields)} need them. Leave those out, or name a dataset "
            "with labels."
        )
        self.id = id
        self.fields = tuple(fields)


class IllegalTransition(StoreError):
    """A job status change that the transition table does not allow: a programming error, never a user's."""

    def __init__(self, job_id: str, current: str, to: str) -> None:
        super().__init__(f"Job {job_id} cannot go from {current} to {to}.")
        self.job_id = job_id
        self.current = current
        self.to = to


class LeaseLost(StoreError):
    """A worker wrote with a lease that it no longer holds; nothing was written, and it must stop at once."""

    def __init__(self, id: str, attempt: int, worker_id: str) -> None:
        super().__init__(f"Worker {worker_id} no longer holds attempt {attempt} of {id}.")
        self.id = id
        self.attempt = attempt
        self.worker_id = worker_id


class SchemaOutdated(StoreError):
    """The database's schema is not the one that this program was written for."""


class ObjectMissing(StoreError):
    """No object is stored under this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"No object is stored under {key!r}.")
        self.key = key


class StorageUnavailable(StoreError, OSError):
    """The object store does not answer, or refuses. `code` is its own word for why, where it gave one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class PartsGone(StoreError):
    """An upload in parts that was completed or aborted, or a part that somebody else is sending by now."""

    def __init__(self, message: str = "This upload has been completed or aborted: it takes no more parts.") -> None:
        super().__init__(message)


class PartsIncomplete(StoreError):
    """Parts that have not arrived, or not with the size that they must have."""

    def __init__(self, missing: Sequence[int], wrong: Sequence[int]) -> None:
        said = [
            f"{len(numbers)} {what} ({', '.join(map(str, numbers[:10]))}{', …' if len(numbers) > 10 else ''})"
            for what, numbers in (("missing", missing), ("of the wrong size", wrong))
            if numbers
        ]
        super().__init__(f"Not all parts are there: {' and '.join(said)}. Send them and complete the upload again.")
        self.missing = tuple(missing)
        self.wrong = tuple(wrong)


class InvalidObjectKey(StoreError, ValueError):
    """An object key that is empty, absolute, or could leave the storage root."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Invalid object key {key!r}: use segments of letters, digits, '_', '-' and '.', joined by '/', none starting with '.'."
        )
        self.key = key
