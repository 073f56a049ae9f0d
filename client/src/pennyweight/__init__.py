"""Client of a Pennyweight compression service: SDK here, command line in `pennyweight.cli`."""

from pennyweight.client import Client
from pennyweight.errors import (
    ApiError,
    DownloadCorrupt,
    InvalidAddress,
    JobFailed,
    PennyweightError,
    ServiceUnreachable,
)
from pennyweight.plans import Plan

__all__ = [
    "ApiError",
    "Client",
    "DownloadCorrupt",
    "InvalidAddress",
    "JobFailed",
    "PennyweightError",
    "Plan",
    "ServiceUnreachable",
]
