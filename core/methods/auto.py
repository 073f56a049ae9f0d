"""Auto: the method that measures best so far, under a name that may stand for another one in a later version.

Today it is magnitude (Li et al., arXiv 1608.08710), with its options.
"""

from __future__ import annotations

from dataclasses import replace

from core.methods import magnitude

METHOD = replace(
    magnitude.METHOD,
    type="auto",
    title="Chosen by Pennyweight",
    description=f"The method that measures best so far: {magnitude.METHOD.type}.",
)
