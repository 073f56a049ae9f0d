"""The way to one S3 bucket: its URL, its clients, and what can go wrong on the way, in words.

    s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-central-1&addressing=path

Credentials come from where boto3 finds them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectTimeoutError,
        EndpointConnectionError,
        NoCredentialsError,
        PartialCredentialsError,
        SSLError,
    )
except ImportError as error:
    raise ValueError(
        f"s3: URLs need a library that is not installed ({error}). Run: pip install 'pennyweight-server[s3]'"
    ) from error

from store.errors import ObjectMissing, PartsGone, StorageUnavailable

T = TypeVar("T")

ATTEMPTS = 5
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
POOL_SIZE = 72
"""The API's 40 threads, the worker's, and readers that hold a connection while a client takes its time."""

PRESIGNED_FOR_S = 900
DEFAULT_REGION = "us-east-1"
_OPTIONS = ("endpoint", "region", "addressing")
_ADDRESSING = ("path", "virtual", "auto")
_MISSING_KEY = frozenset({"NoSuchKey", "404", "NotFound"})
_REFUSED = frozenset(
    {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
)


@dataclass(frozen=True)
class S3Address:
    """A bucket, a prefix in it (empty or ending in a slash), and where it is served (None: Amazon)."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    addressing: str

    @classmethod
    def parse(cls, url: str) -> S3Address:
        """Raises ValueError that says what is wrong with a `PENNYWEIGHT_STORAGE_URL`."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(options.keys() - set(_OPTIONS))
        if unknown:
            raise ValueError(
                f"PENNYWEIGHT_STORAGE_URL has an unknown option {unknown[0]!r}. Known: {', '.join(_OPTIONS)}."
            )
        if not parts.netloc or "@" in parts.netloc or ":" in parts.netloc:
            raise ValueError(
                "PENNYWEIGHT_STORAGE_URL must look like s3://bucket/prefix?endpoint=https://s3.example.org; credentials "
                "go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        endpoint = options.get("endpoint")
        if endpoint is not None:
            check_endpoint("the endpoint of PENNYWEIGHT_STORAGE_URL", endpoint)
        addressing = options.get("addressing", "path" if endpoint else "auto")
        if addressing not in _ADDRESSING:
            raise ValueError(
                f"addressing in PENNYWEIGHT_STORAGE_URL must be one of {', '.join(_ADDRESSING)}, not {addressing!r}."
            )
        prefix = unquote(parts.path).strip("/")
        return cls(
            bucket=parts.netloc,
            prefix=f"{prefix}/" if prefix else "",
            endpoint=endpoint,
            region=options.get("region") or _region_of_environment(),
            addressing=addressing,
        )


def check_endpoint(what: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{what} must look like https://s3.example.org, not {url!r}.")


class S3Connection:
    """Calls S3 on one bucket. Every failure comes out as ObjectMissing, PartsGone or StorageUnavailable."""

    def __init__(self, address: S3Address, public_url: str | None = None) -> None:
        self._address = address
        self._client = _client(address, address.endpoint)
        self._signer = None
        if public_url is not None:
            check_endpoint("PENNYWEIGHT_STORAGE_PUBLIC_URL", public_url)
            self._signer = _client(address, public_url.rstrip("/"))
        self._place = f"the bucket {address.bucket!r} at {address.endpoint or 'Amazon S3'}"

    def name_of(self, key: str) -> str:
        """The full name in the bucket of an object or a folder."""
        return self._address.prefix + key

    def call(self, operation: str, *, key: str | None = None, **parameters: Any) -> Any:
        """`operation` (boto3's name) on the bucket, and on the object `key` if one is given."""
        if key is not None:
            parameters["Key"] = self.name_of(key)
        return self.explaining(
            lambda: getattr(self._client, operation)(Bucket=self._address.bucket, **parameters), key=key
        )

    def presigned(self, operation: str, *, key: str, **parameters: Any) -> str | None:
        """A URL with which anybody can do this once or more for a while; None without a public URL."""
        if self._signer is None:
            return None
        signer = self._signer
        parameters = {"Bucket": self._address.bucket, "Key": self.name_of(key), **parameters}
        return self.explaining(
            lambda: signer.generate_presigned_url(operation, Params=parameters, ExpiresIn=PRESIGNED_FOR_S), key=key
        )

    def explaining(self, attempt: Callable[[], T], *, key: str | None = None) -> T:
        """What `attempt` gives; its failures in our own words."""
        try:
            return attempt()
        except ClientError as error:
            raise self._refusal(error, key) from error
        except (BotoCoreError, OSError) as error:
            raise StorageUnavailable(self._silence(error)) from error

    def _refusal(self, error: ClientError, key: str | None) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = str(error.response.get("Error", {}).get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchUpload":
            return PartsGone()
        if code in _MISSING_KEY and key is not None:
            return ObjectMissing(key)
        match code:
            case "NoSuchBucket" | "404" | "NotFound":
                words = (
                    f"There is no {self._place.removeprefix('the ')}: create it, or correct PENNYWEIGHT_STORAGE_URL."
                )
            case _ if code in _REFUSED:
                words = (
                    f"The access to {self._place} is refused ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
                    "the region, and what they may do there."
                )
            case "RequestTimeTooSkewed":
                words = f"The clock of this machine and that of {self._place} differ too much: set them."
            case _:
                words = (
                    f"The object store refused {error.operation_name} on {self._place} ({code or status}: {message})."
                )
        return StorageUnavailable(words, code or str(status))

    def _silence(self, error: Exception) -> str:
        match error:
            case NoCredentialsError() | PartialCredentialsError():
                return (
                    f"There are no credentials for {self._place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                    "in the environment of the server and of every worker."
                )
            case EndpointConnectionError() | ConnectTimeoutError():
                return f"The object store does not answer ({self._place}): is it running, is the endpoint right?"
            case SSLError():
                return f"There is no trusted TLS connection to {self._place}: {error}"
        return f"The connection to {self._place} broke ({type(error).__name__}: {error})."


def _client(address: S3Address, endpoint: str | None) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=address.region,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": address.addressing},
            # By default boto3 sends checksums that only Amazon understands.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=POOL_SIZE,
        ),
    )


def _region_of_environment() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
