"""Placeholders, and the operations that pass a tensor on: identity, stop_gradient, checks.

Neighbours: ``array_ops`` (shapes and changes of shape), ``planning`` (the check that placeholders are fed).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, FLOATING, DType
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, as_shape, merge, text
from mpirt.ops.apply import apply_op

__all__ = [
    "check_numerics",
    "ensure_shape", "guarantee_const", "identity", "identity_n", "placeholder", "placeholder_with_default", "stop_gradient",
]  # fmt: skip


def _same_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.inputs[0].static_shape]


# ------------------------------------------------------------------------------------------------------ placeholders


def placeholder(dtype: Any, shape: Any = None, name: str | None = None) -> Tensor:
    """A tensor whose value is fed to ``Session.run``.

    Parameters
    ----------
    dtype : element type
    shape : sizes, None for an unknown one; None if any shape may be fed
    name : name of the operation
    """
    attrs = {"dtype": dtypes.as_dtype(dtype).base_dtype, "shape": as_shape(shape)}
    return get_default_graph().create_op("Placeholder", (), attrs, name).outputs[0]


@register_op("Placeholder", outputs=["output: dtype"], attrs={"shape": ("shape", None)}, dtype=ALL)
@register_op("PlaceholderV2", outputs=["output: dtype"], attrs={"shape": "shape"}, dtype=ALL)
def _placeholder_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.attr("shape")]


@register_kernel("Placeholder", "PlaceholderV2")
def _placeholder(ctx: KernelContext, *, dtype: DType, shape: Shape) -> Any:
    sizes = "<unknown>" if shape is None else "[" + ",".join("?" if d is None else str(d) for d in shape) + "]"
    kind = {"float32": "float", "float64": "double", "float16": "half"}.get(dtype.name, dtype.name)
    raise errors.InvalidArgumentError(
        f"You must feed a value for placeholder tensor {ctx.op.name!r} with dtype {kind} and shape {sizes}.",
        op=ctx.op,
        hint=f"pass feed_dict={{{ctx.op.name + ':0'!r}: value}} to run, on the rank that hosts it.",
    )


no_gradient("Placeholder", "PlaceholderV2", reason="it has no inputs")


def placeholder_with_default(input: Any, shape: Any, name: str | None = None) -> Tensor:
    """A tensor that is ``input`` unless another value of the given static ``shape`` is fed."""
    tensor: Tensor = apply_op("PlaceholderWithDefault", input, name=name, shape=as_shape(shape))
    return tensor


@register_op("PlaceholderWithDefault", inputs=["input: dtype"], outputs=["output: dtype"], attrs={"shape": "shape"}, dtype=ALL)
def _placeholder_with_default_shape(ctx: ShapeContext) -> list[Shape]:
    merge(ctx.shape("input"), ctx.attr("shape"))
    return [ctx.attr("shape")]


# ---------------------------------------------------------------------------------------------- identity and its kin


def identity(input: Any, name: str | None = None) -> Tensor:
    """A tensor with the value of ``input``, made on the device of the open scope."""
    tensor: Tensor = apply_op("Identity", input, name=name)
    return tensor


register_op("Identity", inputs=["input: T"], outputs=["output: T"], T=ALL)(_same_shape)


@register_kernel("Identity", "PlaceholderWithDefault", memory="view")
def _identity(ctx: KernelContext, x: Any) -> Any:
    return x


@register_gradient("Identity", "PlaceholderWithDefault")
def _identity_grad(op: Operation, dy: Any) -> list[Any]:
    return [dy]


def identity_n(input: Sequence[Any], name: str | None = None) -> list[Tensor]:
    """Tensors with the values of the list ``input``; all are computed when one is needed."""
    tensors: list[Tensor] = apply_op("IdentityN", list(input), name=name)
    return tensors


@register_op("IdentityN", inputs=["input: T"], outputs=["output: T"], attrs={"T": "list(type)"})
def _identity_n_shape(ctx: ShapeContext) -> list[Shape]:
    return [t.static_shape for t in ctx.inputs]


@register_kernel("IdentityN")
def _identity_n(ctx: KernelContext, *xs: Any) -> Any:
    return xs


@register_gradient("IdentityN")
def _identity_n_grad(op: Operation, *dys: Any) -> list[Any]:
    return list(dys)


def stop_gradient(input: Any, name: str | None = None) -> Tensor:
    """A tensor with the value of ``input`` that ``tf.gradients`` takes as constant."""
    tensor: Tensor = apply_op("StopGradient", input, name=name)
    return tensor


register_op("Snapshot", inputs=["input: T"], outputs=["output: T"], T=ALL)(_same_shape)
register_kernel("Snapshot")(_identity)
register_gradient("Snapshot")(_identity_grad)


def guarantee_const(input: Any, name: str | None = None) -> Tensor:
    """A tensor with the value of ``input``, which the caller says never changes."""
    tensor: Tensor = apply_op("GuaranteeConst", input, name=name)
    return tensor


register_op("GuaranteeConst", inputs=["input: T"], outputs=["output: T"], stateful=True, T=ALL)(_same_shape)
register_kernel("GuaranteeConst")(_identity)
register_gradient("GuaranteeConst")(_identity_grad)

register_op("StopGradient", inputs=["input: T"], outputs=["output: T"], T=ALL)(_same_shape)
register_kernel("StopGradient")(_identity)
no_gradient("StopGradient", reason="stopping the gradient is what it is for")

register_op("PreventGradient", inputs=["input: T"], outputs=["output: T"], attrs={"message": ("string", "")}, T=ALL)(_same_shape)
register_kernel("PreventGradient")(_identity)


@register_gradient("PreventGradient")
def _prevent_gradient_grad(op: Operation, dy: Any) -> list[Any]:
    raise LookupError(f"Gradient explicitly disabled at {op.name!r}. Reason: {op.get_attr('message')}")


def check_numerics(tensor: Any, message: str, name: str | None = None) -> Tensor:
    """``tensor`` itself; the step fails with InvalidArgumentError and ``message`` if it has a NaN or infinity."""
    checked: Tensor = apply_op("CheckNumerics", tensor, name=name, message=message)
    return checked


_MESSAGE = {"message": "string"}


@register_op("CheckNumerics", inputs=["tensor: T"], outputs=["output: T"], attrs=_MESSAGE, stateful=True, T=FLOATING)
@register_op("CheckNumericsV2", inputs=["tensor: T"], outputs=["output: T"], attrs=_MESSAGE, stateful=True, T=FLOATING)
def _check_numerics_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.shape("tensor")]


@register_kernel("CheckNumerics", "CheckNumericsV2", memory="view")
def _check_numerics(ctx: KernelContext, x: Any, *, message: str) -> Any:
    xp = ctx.xp
    if bool(xp.isfinite(x).all()):
        return x
    nans, infs = int(xp.isnan(x).sum()), int(xp.isinf(x).sum())
    found = " and ".join(kind for kind, n in (("Inf", infs), ("NaN", nans)) if n)
    raise errors.InvalidArgumentError(
        f"{message} : Tensor had {found} values: {nans} NaN and {infs} Inf among {x.size} in {ctx.op.inputs[0].name!r}.",
        op=ctx.op,
    )


@register_gradient("CheckNumerics", "CheckNumericsV2")
def _check_numerics_grad(op: Operation, dy: Any) -> list[Any]:
    text = f"Not a number (NaN) or infinity (Inf) values detected in gradient. {op.get_attr('message')}"
    return [check_numerics(dy, text)]


def ensure_shape(x: Any, shape: Any, name: str | None = None) -> Tensor:
    """``x`` itself with a more specific static shape; the step fails with InvalidArgumentError if its shape is another."""
    tensor: Tensor = apply_op("EnsureShape", x, name=name, shape=as_shape(shape))
    return tensor


@register_op("EnsureShape", inputs=["input: T"], outputs=["output: T"], attrs={"shape": "shape"}, T=ALL)
def _ensure_shape_shape(ctx: ShapeContext) -> list[Shape]:
    return [merge(ctx.shape("input"), ctx.attr("shape"))]


@register_kernel("EnsureShape", memory="view")
def _ensure_shape(ctx: KernelContext, x: Any, *, shape: Shape) -> Any:
    if shape is not None and (len(shape) != x.ndim or any(s not in (None, d) for s, d in zip(shape, x.shape, strict=True))):
        raise errors.InvalidArgumentError(
            f"{ctx.op.inputs[0].name!r} has shape {text(x.shape)}, which is not compatible with {text(shape)}.", op=ctx.op
        )
    return x


register_gradient("EnsureShape")(_identity_grad)
