"""The paper's count of a whole network: what is left where a runtime makes use of single zeros.

Pruned layers count as `core.penni.costs.sparse_counts`, ordinary ones as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.analysis import profile
from core.network import Network
from core.penni.costs import dense_counts, sparse_counts
from core.penni.rewriting import SharedLayer


def sparse_network_counts(original: Network, trained: Network, layers: Iterable[SharedLayer]) -> dict[str, int]:
    """params, macs and flops. trained: the values of the layers' factors (`core.penni.rewriting.trainable`)."""
    costs = profile(original).costs
    params, macs = costs.params, costs.macs
    for layer in layers:
        site = layer.site
        whole = dense_counts(site.outputs, site.pieces, site.taps, site.positions)
        left = sparse_counts(layer.factors(trained.tensors), site.positions)
        params += left.params - whole.params
        macs += left.macs - whole.macs
    return {"params": params, "macs": macs, "flops": 2 * macs}
