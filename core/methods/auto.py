"""Auto: the method that measures best so far, under a name that may stand for another one in a later version.

Today it is magnitude (Li et al., arXiv 1608.08710), with its options. Where there are images and no option asks for
widths, a short trial sets shared kernels (penni) beside it and the better one goes on (`core.rivals`).
"""

from __future__ import annotations

from dataclasses import replace

from core.methods import magnitude

METHOD = replace(
    magnitude.METHOD,
    type="auto",
    title="Chosen by Pennyweight",
    description=(
        f"The method that measures best so far: {magnitude.METHOD.type}; with images, penni instead where a short trial on "
        "held-out ones says so."
    ),
)
