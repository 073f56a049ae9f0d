"""Pooling and resampling: batch and channel axes pass, the spatial ones are mixed."""

from __future__ import annotations

from core.analysis.context import Call, Recorder, UnlabelledOperator
from core.analysis.values import Labels, Value


def spatial(rank: int, call: Call, recorder: Recorder) -> dict[int, Labels]:
    """Labels of the leading axes after an operator that mixes the last `rank` axes."""
    x = call["input"] if call.get("input") is not None else call["self"]
    if x.rank <= rank:
        raise UnlabelledOperator(f"{call.operator} of an input without channel axis")
    recorder.freeze_axes(x, range(x.rank - rank, x.rank), f"{call.operator} mixes this axis")
    return {axis: vector for axis, vector in x.labels.items() if axis < x.rank - rank}


def _handler(rank: int):
    def pool(recorder: Recorder, call: Call) -> Value | tuple[Value, ...]:
        labels = spatial(rank, call, recorder)
        metas = call.node.meta["value"]
        if isinstance(metas, tuple):
            return tuple(Value(meta.shape, labels) for meta in metas)
        return Value(metas.shape, labels)

    return pool


def pixel_shuffle(recorder: Recorder, call: Call) -> Value:
    """[…, C·r², H, W] → […, C, H·r, W·r]: the r² channels of one output channel live or die together."""
    x = call["self"]
    axis = x.rank - 3
    labels = {key: vector for key, vector in x.labels.items() if key < axis}
    recorder.freeze_axes(x, [axis + 1, axis + 2], "pixel_shuffle mixes this axis")
    channels = x.vector(axis)
    if channels is not None:
        labels[axis] = recorder.tie_rows(channels.reshape(-1, call["upscale_factor"] ** 2).T)
    return Value(call.shape, labels)


def pixel_unshuffle(recorder: Recorder, call: Call) -> Value:
    """[…, C, H·r, W·r] → […, C·r², H, W]: each channel becomes r² channels."""
    x = call["self"]
    axis = x.rank - 3
    labels = {key: vector for key, vector in x.labels.items() if key < axis}
    recorder.freeze_axes(x, [axis + 1, axis + 2], "pixel_unshuffle mixes this axis")
    channels = x.vector(axis)
    if channels is not None:
        labels[axis] = channels.repeat(call["downscale_factor"] ** 2)
    return Value(call.shape, labels)


def grid_sample(recorder: Recorder, call: Call) -> Value:
    """x [N, C, …] at the places that grid [N, …, 2 or 3] names → [N, C, …]."""
    x, grid = call["input"], call["grid"]
    recorder.freeze_axes(grid, range(grid.rank), "coordinates")
    return Value(call.shape, spatial(x.rank - 2, call, recorder))


def max_unpool(recorder: Recorder, call: Call) -> Value:
    """x and the indices of a max-pooling [N, C, …]: both have the same channels."""
    x, indices = call["self"], call["indices"]
    rank = 2 if call.operator == "max_unpool2d" else 3
    labels = spatial(rank, call, recorder)
    recorder.freeze_axes(indices, range(indices.rank - rank, indices.rank), "max_unpool mixes this axis")
    for axis in range(x.rank - rank):
        if x.shape[axis] > 1:
            recorder.tie(x.vector(axis), indices.vector(axis), "unpooled with indices that cannot be sliced")
    return Value(call.shape, labels)


_RANKS = {"1d": 1, "2d": 2, "3d": 3}
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "_adaptive_avg_pool", "lp_pool")
_SAMPLERS = {
    "upsample_nearest1d": 1,
    "_upsample_nearest_exact1d": 1,
    "upsample_linear1d": 1,
    "upsample_nearest2d": 2,
    "_upsample_nearest_exact2d": 2,
    "upsample_bilinear2d": 2,
    "_upsample_bilinear2d_aa": 2,
    "upsample_bicubic2d": 2,
    "_upsample_bicubic2d_aa": 2,
    "upsample_nearest3d": 3,
    "upsample_trilinear3d": 3,
    "reflection_pad1d": 1,
    "reflection_pad2d": 2,
    "replication_pad1d": 1,
    "replication_pad2d": 2,
    "replication_pad3d": 3,
    "reflection_pad3d": 3,
}
HANDLERS = {
    **{f"{name}{suffix}": _handler(rank) for name in _POOLS for suffix, rank in _RANKS.items()},
    **{f"max_pool{suffix}_with_indices": _handler(rank) for suffix, rank in _RANKS.items()},
    **{name: _handler(rank) for name, rank in _SAMPLERS.items()},
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), grid_sample),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), max_unpool),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
}
