"""How much of this process's machine a dataset may take: memory for its images, and disk where that is too little."""

from __future__ import annotations

import os
import resource
from pathlib import Path

# Training needs memory too: the original, the network, its gradients, and the activations of a batch.
_SHARE_OF_MEMORY = 0.25
_CONTROL_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Where nothing limits the size of a file. Decoding more would take longer than training on it.
_DEFAULT_DISK_BYTES = 64 * 2**30
# The upload itself, and what a job delivers, lie on the same disk.
_SHARE_OF_DISK = 0.8


def memory_allowance_bytes() -> int:
    """Decoded images up to this size are held in memory; larger datasets are read from a file, batch by batch."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CONTROL_GROUP_LIMITS:
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return int(_SHARE_OF_MEMORY * min(limits))


def decoded_limit_bytes() -> int:
    """The largest dataset, decoded, that can be used here: what fits the memory's share or one file on the disk."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    disk_bytes = _DEFAULT_DISK_BYTES if soft == resource.RLIM_INFINITY else int(_SHARE_OF_DISK * soft)
    return max(memory_allowance_bytes(), disk_bytes)
