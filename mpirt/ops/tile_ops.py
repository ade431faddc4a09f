"""Operations that repeat or move whole tensors: broadcast, tile, pad, reverse.

Neighbours: ``broadcasting`` decides while building what a gradient must sum; ``BroadcastGradientArgs`` here does it in the
step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import ALL, INDEX, int32, int64
from mpirt.graph import constants
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, TensorShape, as_shape, broadcast, is_static, normalize_axis, text, with_rank
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor
from mpirt.ops.arguments import axis_of, either, shape_tensor, sizes_of
from mpirt.ops.array_ops import rank, reshape, reshape_like, shape
from mpirt.ops.broadcasting import unbroadcast

__all__ = [
    "broadcast_dynamic_shape", "broadcast_static_shape", "broadcast_to", "pad", "reverse", "reverse_sequence", "reverse_v2",
    "tile",
]  # fmt: skip

_NOT_RESOURCE = tuple(t for t in ALL if t.name != "resource")


# --------------------------------------------------------------------------------------------------------- broadcast


def broadcast_to(input: Any, shape: Any, name: str | None = None) -> Tensor:
    """``input`` repeated to ``shape`` by numpy's broadcasting."""
    out: Tensor = apply_op("BroadcastTo", input, shape_tensor(shape), name=name)
    return out


@register_op("BroadcastTo", inputs=["input: T", "shape: Tidx"], outputs=["output: T"], attrs={"Tidx": ("type", int32)}, T=ALL, Tidx=INDEX)
def _broadcast_to_shape(ctx: ShapeContext) -> list[Shape]:
    known, target, value = ctx.shape("input"), ctx.const_shape("shape"), ctx.const("shape")
    if value is not None and np.any(value < 0):
        raise ValueError(f"the shape {value.tolist()} has a negative size")
    if known is not None and target is not None:
        if len(known) > len(target):
            raise ValueError(f"a tensor of shape {text(known)} can't be broadcast to {text(target)}")
        tail = target[len(target) - len(known) :]
        if any(k not in (None, 1) and t is not None and k != t for k, t in zip(known, tail, strict=True)):
            raise ValueError(f"a tensor of shape {text(known)} can't be broadcast to {text(target)}")
        # A size that isn't 1 can't grow, so it is the result's too.
        known_tail = [k if t is None and k != 1 else t for k, t in zip(known, tail, strict=True)]
        target = (*target[: len(target) - len(known)], *known_tail)
    return [target]


@register_kernel("BroadcastTo", host=("shape",), memory="own")
def _broadcast_to(ctx: KernelContext, x: Any, target: Any) -> Any:
    sizes = sizes_of(ctx, target)
    out = ctx.xp.empty(sizes, x.dtype)  # not a view with strides of 0, which few consumers expect
    try:
        if x.ndim > out.ndim:
            raise ValueError
        out[...] = x
        return out
    except ValueError:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: a tensor of shape {text(x.shape)} can't be broadcast to {text(sizes)}.", op=ctx.op
        ) from None


@register_gradient("BroadcastTo")
def _broadcast_to_grad(op: Operation, dy: Any) -> list[Any]:
    dy = convert_to_tensor(dy)
    return [unbroadcast(op.inputs[0], op.outputs[0], dy, dy)[0], None]


def broadcast_static_shape(shape_x: Any, shape_y: Any) -> TensorShape:
    """Shape of the result of broadcasting two known shapes; ValueError if they don't fit."""
    return TensorShape(broadcast(as_shape(shape_x), as_shape(shape_y)))


def broadcast_dynamic_shape(shape_x: Any, shape_y: Any) -> Tensor:
    """Shape of the result of broadcasting two shapes, as a vector."""
    shape_x, shape_y = shape_tensor(shape_x, "shape_x"), shape_tensor(shape_y, "shape_y")
    out: Tensor = apply_op("BroadcastArgs", shape_x, shape_y)
    return out


@register_op("BroadcastArgs", inputs=["s0: T", "s1: T"], outputs=["r0: T"], attrs={"T": ("type", int32)}, T=INDEX)
def _broadcast_args_shape(ctx: ShapeContext) -> list[Shape]:
    (a,), (b,) = with_rank(ctx.shape("s0"), 1, "s0"), with_rank(ctx.shape("s1"), 1, "s1")
    return [(None if a is None or b is None else max(a, b),)]


@register_kernel("BroadcastArgs", host=("s0", "s1", "r0"))
def _broadcast_args(ctx: KernelContext, s0: Any, s1: Any) -> Any:
    return np.array(_broadcast_sizes(ctx, s0, s1), s0.dtype)


@register_op("BroadcastGradientArgs", inputs=["s0: T", "s1: T"], outputs=["r0: T", "r1: T"], attrs={"T": ("type", int32)}, T=INDEX)
def _broadcast_gradient_args_shape(ctx: ShapeContext) -> list[Shape]:
    with_rank(ctx.shape("s0"), 1, "s0"), with_rank(ctx.shape("s1"), 1, "s1")
    return [(None,), (None,)]


@register_kernel("BroadcastGradientArgs", host=("s0", "s1", "r0", "r1"))
def _broadcast_gradient_args(ctx: KernelContext, s0: Any, s1: Any) -> Any:
    """For each operand the axes of the result to sum: those it lacks or has size 1 in; none if the shapes are equal."""
    a, b = s0.tolist(), s1.tolist()
    if a == b:
        return [np.empty(0, s0.dtype), np.empty(0, s0.dtype)]
    ndim = len(_broadcast_sizes(ctx, s0, s1))
    out = []
    for sizes in (a, b):
        padded = [1] * (ndim - len(sizes)) + sizes
        out.append(np.array([i for i, d in enumerate(padded) if d == 1], s0.dtype))
    return out


def _broadcast_sizes(ctx: KernelContext, s0: Any, s1: Any) -> list[int | None]:
    try:
        return list(broadcast(tuple(s0.tolist()), tuple(s1.tolist())) or ())
    except ValueError:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: shapes {s0.tolist()} and {s1.tolist()} can't be broadcast together.", op=ctx.op
        ) from None


no_gradient("BroadcastArgs", "BroadcastGradientArgs", reason="its integers are shapes and axes")


# -------------------------------------------------------------------------------------------------------------- tile


def tile(input: Any, multiples: Any, name: str | None = None) -> Tensor:
    """``input`` repeated ``multiples[i]`` times along each dimension i."""
    out: Tensor = apply_op("Tile", input, shape_tensor(multiples, "multiples"), name=name)
    return out


@register_op(
    "Tile",
    inputs=["input: T", "multiples: Tmultiples"],
    outputs=["output: T"],
    attrs={"Tmultiples": ("type", int32)},
    T=ALL,
    Tmultiples=INDEX,
)
def _tile_shape(ctx: ShapeContext) -> list[Shape]:
    known, multiples, length = (
        ctx.shape("input"),
        ctx.const_shape("multiples"),
        with_rank(ctx.shape("multiples"), 1, "multiples")[0],
    )
    value = ctx.const("multiples")
    if value is not None and np.any(value < 0):
        raise ValueError(f"multiples {value.tolist()} must not be negative")
    if known is None and length is None:
        return [None]
    known = with_rank(known, len(known or ()) if length is None else length, "input")
    if multiples is None:
        multiples = (None,) * len(known)
    return [tuple(0 if 0 in (d, m) else None if d is None or m is None else d * m for d, m in zip(known, multiples, strict=True))]


@register_kernel("Tile", host=("multiples",))
def _tile(ctx: KernelContext, x: Any, multiples: Any) -> Any:
    times = sizes_of(ctx, multiples, "multiples")
    if len(times) != x.ndim:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: multiples {list(times)} must have one entry for each dimension of shape {text(x.shape)}.",
            op=ctx.op,
        )
    return ctx.xp.tile(x, times)


@register_gradient("Tile")
def _tile_grad(op: Operation, dy: Any) -> list[Any]:
    x, multiples = op.inputs
    known = constants.value(multiples)
    if known is not None and is_static(x.static_shape):
        assert x.static_shape is not None
        pairs = [n for pair in zip(known.tolist(), x.static_shape, strict=True) for n in pair]
        return [apply_op("Sum", reshape(dy, pairs), np.arange(0, len(pairs), 2, dtype=np.int32)), None]
    # [m0, d0, m1, d1, ...]: each dimension of dy split into copies and positions; the copies are summed.
    pairs = apply_op("Transpose", apply_op("Pack", [multiples, shape(x, out_type=multiples.dtype)]), [1, 0])
    summed = apply_op("Sum", reshape(dy, reshape(pairs, [-1])), apply_op("Range", 0, apply_op("Mul", rank(x), 2), 2))
    return [reshape_like(summed, x), None]


# --------------------------------------------------------------------------------------------------------------- pad


def pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", name: str | None = None, constant_values: Any = 0) -> Tensor:
    """``tensor`` with ``paddings[i] = (before, after)`` elements added around it along each dimension i.

    Parameters
    ----------
    tensor : Tensor
    paddings : integers of shape [ndim, 2]
    mode : "CONSTANT", or "REFLECT" / "SYMMETRIC": mirrored without / with the edge
    name : name of the operation
    constant_values : number to add in mode "CONSTANT"
    """
    paddings = shape_tensor(paddings, "paddings")
    kind = mode.upper()
    out: Tensor
    if kind == "CONSTANT":
        if not is_tensor(constant_values) and np.ndim(constant_values) == 0 and constant_values == 0:
            out = apply_op("Pad", tensor, paddings, name=name)
        else:
            out = apply_op("PadV2", tensor, paddings, constant_values, name=name)
    elif kind in ("REFLECT", "SYMMETRIC"):
        out = apply_op("MirrorPad", tensor, paddings, name=name, mode=kind)
    else:
        raise ValueError(f"Unknown padding mode: {mode!r}; there are CONSTANT, REFLECT and SYMMETRIC.")
    return out


_PADDINGS_INT32: dict[str, Any] = {"Tpaddings": ("type", int32)}
_MIRROR_ATTRS: dict[str, Any] = {"mode": "string", **_PADDINGS_INT32}


def _padded_shape(ctx: ShapeContext, sign: int) -> list[Shape]:
    known, form, value = ctx.shape("input"), with_rank(ctx.shape("paddings"), 2, "paddings"), ctx.const("paddings")
    if form[1] not in (None, 2):
        raise ValueError(f"paddings must have shape [ndim, 2], not {text(form)}")
    if known is None and form[0] is None:
        return [None]
    known = with_rank(known, len(known or ()) if form[0] is None else form[0], "input")
    if value is None:
        return [(None,) * len(known)]
    if np.any(value < 0):
        raise ValueError(f"paddings {value.tolist()} must not be negative")
    if len(value) != len(known):
        raise ValueError(f"paddings {value.tolist()} must have one row for each dimension of shape {text(known)}")
    return [tuple(None if d is None else d + sign * int(p.sum()) for d, p in zip(known, value, strict=True))]


@register_op("Pad", inputs=["input: T", "paddings: Tpaddings"], outputs=["output: T"], attrs=_PADDINGS_INT32, T=ALL, Tpaddings=INDEX)
def _pad_shape(ctx: ShapeContext) -> list[Shape]:
    return _padded_shape(ctx, 1)


@register_op(
    "PadV2",
    inputs=["input: T", "paddings: Tpaddings", "constant_values: T"],
    outputs=["output: T"],
    attrs=_PADDINGS_INT32,
    T=ALL,
    Tpaddings=INDEX,
)
def _pad_v2_shape(ctx: ShapeContext) -> list[Shape]:
    with_rank(ctx.shape("constant_values"), 0, "constant_values")
    return _padded_shape(ctx, 1)


def _pairs_of(ctx: KernelContext, x: Any, paddings: Any) -> list[tuple[int, int]]:
    if paddings.shape != (x.ndim, 2) or np.any(paddings < 0):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: paddings {paddings.tolist()} must be pairs of numbers >= 0, one for each dimension of shape"
            f" {text(x.shape)}.",
            op=ctx.op,
        )
    return [(int(before), int(after)) for before, after in paddings.tolist()]


def _pad_with(ctx: KernelContext, x: Any, paddings: Any, value: Any) -> Any:
    pairs = _pairs_of(ctx, x, paddings)
    out = ctx.xp.full([d + b + a for d, (b, a) in zip(x.shape, pairs, strict=True)], value, x.dtype)
    out[tuple(slice(b, b + d) for d, (b, _) in zip(x.shape, pairs, strict=True))] = x
    return out


@register_kernel("Pad", host=("paddings",))
def _pad(ctx: KernelContext, x: Any, paddings: Any) -> Any:
    return _pad_with(ctx, x, paddings, b"" if x.dtype == object else 0)


@register_kernel("PadV2", host=("paddings",))
def _pad_v2(ctx: KernelContext, x: Any, paddings: Any, value: Any) -> Any:
    return _pad_with(ctx, x, paddings, value)


@register_gradient("Pad", "PadV2")
def _pad_grad(op: Operation, dy: Any) -> list[Any]:
    x, paddings = op.inputs[0], op.inputs[1]
    known = constants.value(paddings)
    begin = reshape(apply_op("Slice", paddings, [0, 0], [-1, 1]), [-1]) if known is None else known[:, 0]
    size = shape(x, out_type=paddings.dtype)
    # The padding's value gets no gradient, as in TensorFlow.
    return [apply_op("Slice", dy, begin, size), None] + [None] * (op.type == "PadV2")


@register_op("MirrorPad", inputs=["input: T", "paddings: Tpaddings"], outputs=["output: T"], attrs=_MIRROR_ATTRS, T=ALL, Tpaddings=INDEX)
def _mirror_pad_shape(ctx: ShapeContext) -> list[Shape]:
    _check_mode(ctx)
    return _padded_shape(ctx, 1)


@register_op(
    "MirrorPadGrad",
    inputs=["input: T", "paddings: Tpaddings"],
    outputs=["output: T"],
    attrs=_MIRROR_ATTRS,
    T=ALL,
    Tpaddings=INDEX,
)
def _mirror_pad_grad_shape(ctx: ShapeContext) -> list[Shape]:
    _check_mode(ctx)
    return _padded_shape(ctx, -1)


def _check_mode(ctx: ShapeContext) -> None:
    if ctx.attr("mode") not in ("REFLECT", "SYMMETRIC"):
        raise ValueError(f"mode must be REFLECT or SYMMETRIC, not {ctx.attr('mode')!r}")


def _check_mirror(ctx: KernelContext, sizes: list[int], pairs: list[tuple[int, int]], offset: int) -> None:
    if any(max(pair) > d - offset for d, pair in zip(sizes, pairs, strict=True) if max(pair)):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: paddings {pairs} must be at most {'the size - 1' if offset else 'the size'} of each dimension"
            f" of shape {text(tuple(sizes))} to mirror it.",
            op=ctx.op,
        )


@register_kernel("MirrorPad", host=("paddings",))
def _mirror_pad(ctx: KernelContext, x: Any, paddings: Any, *, mode: str) -> Any:
    pairs = _pairs_of(ctx, x, paddings)
    _check_mirror(ctx, list(x.shape), pairs, int(mode == "REFLECT"))
    return ctx.xp.pad(x, pairs, mode=mode.lower()) if pairs else x


@register_kernel("MirrorPadGrad", host=("paddings",))
def _mirror_pad_grad(ctx: KernelContext, dy: Any, paddings: Any, *, mode: str) -> Any:
    """Each mirrored element is added to the one it came from, one dimension after the other."""
    offset = int(mode == "REFLECT")
    pairs = _pairs_of(ctx, dy, paddings)
    _check_mirror(ctx, [d - sum(pair) for d, pair in zip(dy.shape, pairs, strict=True)], pairs, offset)
    for axis, (before, after) in enumerate(pairs):
        if not before and not after:
            continue
        g = ctx.xp.moveaxis(dy, axis, 0)
        n = g.shape[0] - before - after
        inner = g[before : before + n].copy()
        if before:
            inner[offset : offset + before] += g[:before][::-1]
        if after:
            inner[n - after - offset : n - offset] += g[before + n :][::-1]
        dy = ctx.xp.moveaxis(inner, 0, axis)
    return dy


@register_gradient("MirrorPad")
def _mirror_pad_gradient(op: Operation, dy: Any) -> list[Any]:
    return [apply_op("MirrorPadGrad", dy, op.inputs[1], mode=op.get_attr("mode")), None]


@register_gradient("MirrorPadGrad")
def _mirror_pad_grad_gradient(op: Operation, ddx: Any) -> list[Any]:
    return [apply_op("MirrorPad", ddx, op.inputs[1], mode=op.get_attr("mode")), None]


# ----------------------------------------------------------------------------------------------------------- reverse


def reverse(tensor: Any, axis: Any, name: str | None = None) -> Tensor:
    """``tensor`` with the order of the elements along each axis of the list ``axis`` turned round."""
    out: Tensor = apply_op("ReverseV2", tensor, shape_tensor(axis, "axis"), name=name)
    return out


reverse_v2 = reverse


@register_op(
    "ReverseV2",
    inputs=["tensor: T", "axis: Tidx"],
    outputs=["output: T"],
    attrs={"Tidx": ("type", int32)},
    T=_NOT_RESOURCE,
    Tidx=INDEX,
)
def _reverse_v2_shape(ctx: ShapeContext) -> list[Shape]:
    known, axes = ctx.shape("tensor"), ctx.const("axis")
    with_rank(ctx.shape("axis"), 1, "axis")
    if known is not None and axes is not None:
        found = [normalize_axis(a, len(known)) for a in axes.tolist()]
        if len(set(found)) < len(found):
            raise ValueError(f"axis {axes.tolist()} names a dimension twice")
    return [known]


@register_kernel("ReverseV2", host=("axis",), memory="view")
def _reverse_v2(ctx: KernelContext, x: Any, axes: Any) -> Any:
    found = [axis_of(ctx, a, x.ndim) for a in axes.tolist()]
    if len(set(found)) < len(found):
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: axis {axes.tolist()} names a dimension twice.", op=ctx.op)
    return ctx.xp.flip(x, tuple(found))


@register_op("Reverse", inputs=["tensor: T", "dims: bool"], outputs=["output: T"], T=_NOT_RESOURCE)
def _reverse_shape(ctx: ShapeContext) -> list[Shape]:
    (length,), known = with_rank(ctx.shape("dims"), 1, "dims"), ctx.shape("tensor")
    return [known if length is None else with_rank(known, length, "tensor")]


@register_kernel("Reverse", host=("dims",))
def _reverse(ctx: KernelContext, x: Any, dims: Any) -> Any:
    if dims.shape != (x.ndim,):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: dims {dims.tolist()} must have one entry for each dimension of shape {text(x.shape)}.", op=ctx.op
        )
    return ctx.xp.flip(x, tuple(np.flatnonzero(dims).tolist()))


@register_gradient("ReverseV2", "Reverse")
def _reverse_grad(op: Operation, dy: Any) -> list[Any]:
    return [apply_op(op.type, dy, op.inputs[1]), None]


def reverse_sequence(
    input: Any,
    seq_lengths: Any,
    seq_axis: int | None = None,
    batch_axis: int | None = None,
    name: str | None = None,
    seq_dim: int | None = None,
    batch_dim: int | None = None,
) -> Tensor:
    """``input`` with the first ``seq_lengths[b]`` elements along ``seq_axis`` turned round for each b of ``batch_axis``."""
    seq = either("seq_axis", seq_axis, "seq_dim", seq_dim)
    batch = 0 if batch_axis is None and batch_dim is None else either("batch_axis", batch_axis, "batch_dim", batch_dim)
    lengths = shape_tensor(seq_lengths, "seq_lengths")
    out: Tensor = apply_op("ReverseSequence", input, lengths, name=name, seq_dim=seq, batch_dim=batch)
    return out


@register_op(
    "ReverseSequence",
    inputs=["input: T", "seq_lengths: Tlen"],
    outputs=["output: T"],
    attrs={"seq_dim": "int", "batch_dim": ("int", 0), "Tlen": ("type", int64)},
    T=ALL,
    Tlen=INDEX,
)
def _reverse_sequence_shape(ctx: ShapeContext) -> list[Shape]:
    known, (lengths,) = ctx.shape("input"), with_rank(ctx.shape("seq_lengths"), 1, "seq_lengths")
    seq, batch = ctx.attr("seq_dim"), ctx.attr("batch_dim")
    if known is None:
        return [None]
    if seq == batch or not (0 <= seq < len(known) and 0 <= batch < len(known)):
        raise ValueError(f"seq_dim {seq} and batch_dim {batch} must be two dimensions of shape {text(known)}")
    if known[batch] is not None and lengths is not None and known[batch] != lengths:
        raise ValueError(f"there are {lengths} seq_lengths for {known[batch]} entries of dimension {batch}")
    return [tuple(lengths if i == batch and d is None else d for i, d in enumerate(known))]


@register_kernel("ReverseSequence", host=("seq_lengths",))
def _reverse_sequence(ctx: KernelContext, x: Any, lengths: Any, *, seq_dim: int, batch_dim: int) -> Any:
    if lengths.shape != (x.shape[batch_dim],) or np.any(lengths < 0) or np.any(lengths > x.shape[seq_dim]):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: seq_lengths {lengths.tolist()} must be {x.shape[batch_dim]} numbers <= {x.shape[seq_dim]}.",
            op=ctx.op,
        )
    out = x.copy()
    source, target = (ctx.xp.moveaxis(a, (batch_dim, seq_dim), (0, 1)) for a in (x, out))
    for b, length in enumerate(lengths.tolist()):
        target[b, :length] = source[b, :length][::-1]
    return out


@register_gradient("ReverseSequence")
def _reverse_sequence_grad(op: Operation, dy: Any) -> list[Any]:
    attrs = {"seq_dim": op.get_attr("seq_dim"), "batch_dim": op.get_attr("batch_dim")}
    return [apply_op("ReverseSequence", dy, op.inputs[1], **attrs), None]
