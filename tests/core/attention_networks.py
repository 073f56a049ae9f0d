"""Forms of attention between the tokens of a small map, each around one stem and one head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, HEADS, INNER = 24, 2, 6
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Queries, keys and values from one linear layer, [N, tokens, 3 · heads · inner]; `attend` sees [N, h, tokens, d]."""

    def __init__(self, attend: Attend, heads: int = HEADS, inner: int = INNER) -> None:
        super().__init__()
        self.heads, self.inner = heads, inner
        self.stem = nn.Conv2d(3, DIM, 2, 2)
        self.qkv = nn.Linear(DIM, 3 * heads * inner)
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))
        self.proj = nn.Linear(heads * inner, DIM)
        self.head = nn.Linear(DIM, 5)
        self._attend = attend

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, self.inner).permute(2, 0, 3, 1, 4)
        y = self._attend(*qkv.unbind(0)) + self.bias
        return self.head((x + self.proj(y.transpose(1, 2).reshape(n, tokens, -1))).mean(1))


class SeparateProjections(nn.Module):
    """Queries and keys of another width than the values, and a mask that is a parameter per head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, 2, 2)
        self.query, self.key, self.value = nn.Linear(DIM, 12), nn.Linear(DIM, 12), nn.Linear(DIM, 20)
        self.mask = nn.Parameter(torch.randn(2, 9, 9))
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.head(y.transpose(1, 2).flatten(2).mean(1))


class Pixels(nn.Module):
    """Attention without heads by batched products, as vision networks before transformers had it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, 2, 2)
        self.theta, self.phi, self.g = nn.Conv2d(DIM, 8, 1), nn.Conv2d(DIM, 8, 1), nn.Conv2d(DIM, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        scores = torch.baddbmm(torch.zeros(1, 1, 1), theta.transpose(1, 2), phi, beta=0.5, alpha=0.3)
        return self.head(torch.bmm(scores.softmax(2), g.transpose(1, 2)).mean(1))


def dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * INNER**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def fused_with_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=0.3)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k)
    return torch.einsum("...ij,...jd->...id", scores.softmax(-1), v)


def cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v


def across_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (one.transpose(-2, -1) for one in (q, k, v))
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return (scores.softmax(-1) @ v).transpose(-2, -1)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.relu(q) @ (k.softmax(-2).transpose(-2, -1) @ v)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dot product": lambda: Attention(dot_product),
    "fused": lambda: Attention(fused),
    "fused with a scale": lambda: Attention(fused_with_scale),
    "causal": lambda: Attention(causal),
    "einsum": lambda: Attention(by_einsum),
    "cosine": lambda: Attention(cosine, heads=4),
    "cosine with three heads": lambda: Attention(cosine, heads=3),
    "across channels": lambda: Attention(across_channels, heads=4),
    "linear": lambda: Attention(linear_attention),
    "more heads than channels": lambda: Attention(dot_product, heads=8, inner=3),
    "separate projections": SeparateProjections,
    "pixels": Pixels,
}
