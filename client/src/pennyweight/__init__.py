"""Client of a Pennyweight compression service: SDK here, command line in `pennyweight.cli`."""

from pennyweight.client import Client
from pennyweight.errors import ApiError, DownloadCorrupt, JobFailed, PennyweightError, ServiceUnreachable

__all__ = ["ApiError", "Client", "DownloadCorrupt", "JobFailed", "PennyweightError", "ServiceUnreachable"]
