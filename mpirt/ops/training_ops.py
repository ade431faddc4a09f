"""Operations that update a variable from its gradient: one step of each optimizer's rule, in place.

Each rule is written once, over arrays, and registered under TensorFlow's four names: ``Apply...`` (reference variable),
``ResourceApply...`` (handle), and with ``Sparse`` for a gradient of some rows, where the rule is applied to those rows.
A row named twice is updated twice, in order; the optimizers sum such rows first.
Guarantee: an update of one variable and its slots is atomic, whatever ``use_locking`` says.
Arithmetic: in the variable's own type, in the order TensorFlow's kernels use (core/kernels/training_ops.cc).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, merge, text, with_rank

Array = Any
Rule = Callable[..., None]

# Elements that a rule is applied to at a time: its passes find them in the second cache. Every rule is elementwise.
_BLOCK = 1 << 16

_REASON = "it updates a variable; what it computes is the step itself"


def _update_op(
    name: str,
    *,
    slots: Sequence[str] = (),
    args: Sequence[str],
    grad: str = "grad",
    dense: bool = True,
    sparse: bool = True,
    attrs: dict[str, tuple[str, Any]] | None = None,
    integers: Sequence[str] = (),
) -> Callable[[Rule], Rule]:
    """Register ``rule(xp, var, *slots, *args, **attrs)``, which changes var and slots in place, under TensorFlow's names.

    ``args`` are the inputs behind the slots, ``grad`` among them; the others are scalars, of the variable's type unless they
    are among ``integers`` (int64). A sparse operation has ``indices`` right behind ``grad``.
    """

    def register(rule: Rule) -> Rule:
        for is_sparse in (False,) * dense + (True,) * sparse:
            for resource in (False, True):
                _register(
                    rule, f"{'Resource' if resource else ''}{'Sparse' if is_sparse else ''}Apply{name}", resource, is_sparse
                )
        return rule

    def _register(rule: Rule, op_type: str, resource: bool, is_sparse: bool) -> None:
        cells = ["var", *slots]
        inputs = [f"{c}: {'resource' if resource else 'Ref(T)'}" for c in cells]
        for arg in args:
            inputs += [f"{arg}: {'int64' if arg in integers else 'T'}"] + (["indices: Tindices"] if is_sparse and arg == grad else [])
        scalars = [a for a in args if a != grad]
        types = {"T": dtypes.FLOATING + dtypes.COMPLEX} | ({"Tindices": dtypes.INDEX} if is_sparse else {})
        register_op(
            op_type,
            inputs=inputs,
            outputs=[] if resource else ["out: Ref(T)"],
            attrs={"use_locking": ("bool", False), **(attrs or {})},
            stateful=resource,
            **types,
        )(functools.partial(_shape, cells, scalars, grad, resource, is_sparse))
        where = len(cells) + list(args).index(grad)
        register_kernel(op_type, memory="own")((_sparse_kernel if is_sparse else _dense_kernel)(rule, len(cells), where, resource))
        no_gradient(op_type, reason=_REASON)

    return register


def _shape(cells: list[str], scalars: list[str], grad: str, resource: bool, is_sparse: bool, ctx: ShapeContext) -> list[Shape]:
    shape: Shape = None
    for cell in cells:
        shape = merge(shape, _variable_shape(ctx, cell, resource))
    for scalar in scalars:
        with_rank(ctx.shape(scalar), 0, scalar)
    if is_sparse:
        rows = with_rank(ctx.shape("indices"), 1, "indices")
        if shape is not None and not shape:
            raise ValueError("a sparse update needs a variable of at least one dimension, not a scalar")
        merge(ctx.shape(grad), None if shape is None else rows + shape[1:])
    else:
        shape = merge(shape, ctx.shape(grad))
    return [] if resource else [shape]


def _variable_shape(ctx: ShapeContext, name: str, resource: bool) -> Shape:
    if not resource:
        return ctx.shape(name)
    op = ctx.tensor(name).op
    shape: Shape = op.attrs["shape"] if op.type == "VarHandleOp" else None
    return shape


def _dense_kernel(rule: Rule, num_cells: int, where: int, resource: bool) -> Callable[..., Any]:
    def update(ctx: KernelContext, inputs: Sequence[Any], attrs: dict[str, Any]) -> None:
        # Nothing here but what must be: of a small layer's biases all that surrounds the rule takes longer than the rule.
        arrays = [cell.writable() for cell in inputs[:num_cells]]
        var, grad = arrays[0], inputs[where]
        shape = var.shape
        if grad.shape != shape:
            raise errors.InvalidArgumentError(
                f"{ctx.op.name}: var and grad do not have the same shape: {shape} and {grad.shape}.", op=ctx.op
            )
        for slot in arrays[1:]:
            if slot.shape != shape:
                raise _wrong_slot(ctx, var, slot)
        if var.size <= _BLOCK or ctx.xp is not np or not all([a.flags.c_contiguous for a in (*arrays, grad)]):
            rule(ctx.xp, *arrays, *inputs[num_cells:], **attrs)
            return
        parts = [a.reshape(-1) for a in arrays]
        before, grad, after = inputs[num_cells:where], grad.reshape(-1), inputs[where + 1 :]
        for start in range(0, grad.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            rule(np, *[part[block] for part in parts], *before, grad[block], *after, **attrs)

    return _locking(rule, update, num_cells, resource)


def _sparse_kernel(rule: Rule, num_cells: int, where: int, resource: bool) -> Callable[..., Any]:
    def update(ctx: KernelContext, inputs: Sequence[Any], attrs: dict[str, Any]) -> None:
        grad, indices = inputs[where], inputs[where + 1]
        before, after = inputs[num_cells:where], inputs[where + 2 :]
        arrays = [cell.writable() for cell in inputs[:num_cells]]
        for slot in arrays[1:]:
            if slot.shape != arrays[0].shape:
                raise _wrong_slot(ctx, arrays[0], slot)
        _check_rows(ctx, arrays[0], grad, indices)
        for chosen in _rounds(ctx.xp, indices):
            rows = indices if chosen is None else indices[chosen]
            parts = [a[rows] for a in arrays]
            rule(ctx.xp, *parts, *before, grad if chosen is None else grad[chosen], *after, **attrs)
            for array, part in zip(arrays, parts, strict=True):
                array[rows] = part

    return _locking(rule, update, num_cells, resource)


def _locking(rule: Rule, update: Callable[..., None], num_cells: int, resource: bool) -> Callable[..., Any]:
    """The kernel: ``update`` under the locks of its cells, taken in the op's order (the variable, then its slots)."""
    assert 0 < num_cells <= 4, "the locks below are written out"

    @functools.wraps(rule)  # the rule's keywords are the attributes to bind
    def kernel(ctx: KernelContext, *inputs: Any, **attrs: Any) -> Any:
        # Written out for most rules: an ExitStack takes longer than the update of a small layer's biases.
        if num_cells == 1:
            with inputs[0].lock:
                update(ctx, inputs, attrs)
        elif num_cells == 2:
            with inputs[0].lock, inputs[1].lock:
                update(ctx, inputs, attrs)
        else:
            with inputs[0].lock, inputs[1].lock, inputs[2].lock, inputs[num_cells - 1].lock:  # it may be taken twice
                update(ctx, inputs, attrs)
        return None if resource else inputs[0]

    return kernel


def _wrong_slot(ctx: KernelContext, var: Array, slot: Array) -> errors.InvalidArgumentError:
    return errors.InvalidArgumentError(f"{ctx.op.name}: the variable has shape {var.shape}, but its slot {slot.shape}.", op=ctx.op)


def _check_rows(ctx: KernelContext, var: Array, grad: Array, indices: Array) -> None:
    if grad.shape != indices.shape + var.shape[1:] or indices.ndim != 1:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name}: grad has shape {text(grad.shape)}, but {text(indices.shape)} indices into a variable of shape "
            f"{text(var.shape)} need {text(indices.shape + var.shape[1:])}.",
            op=ctx.op,
        )
    wrong = (indices < 0) | (indices >= var.shape[0])
    if wrong.any():
        offset = int(wrong.argmax())
        raise errors.InvalidArgumentError(
            f"{ctx.op.name}: index {int(indices[offset])} at offset {offset} in indices is out of range [0, {var.shape[0]}).",
            op=ctx.op,
        )


def _rounds(xp: ModuleType, indices: Array) -> list[Array | None]:
    """Positions in ``indices`` to do together, no row twice in one round, repeats in order; [None] if no row repeats."""
    order = xp.argsort(indices, kind="stable")
    ordered = indices[order]
    starts = xp.concatenate([xp.ones(1, bool), ordered[1:] != ordered[:-1]]) if indices.size else xp.ones(0, bool)
    if bool(starts.all()):
        return [None]
    nth = xp.arange(indices.size) - xp.flatnonzero(starts)[xp.cumsum(starts) - 1]  # how often the row came before
    return [xp.sort(order[nth == n]) for n in range(int(nth.max()) + 1)]


# ------------------------------------------------------------------------------------------------------ the rules


@_update_op("GradientDescent", args=["alpha", "delta"], grad="delta", sparse=False)
def _gradient_descent(xp: ModuleType, var: Array, alpha: Array, delta: Array) -> None:
    var -= delta * alpha


@_update_op("Momentum", slots=["accum"], args=["lr", "grad", "momentum"], attrs={"use_nesterov": ("bool", False)})
def _momentum(xp: ModuleType, var: Array, accum: Array, lr: Array, grad: Array, momentum: Array, *, use_nesterov: bool) -> None:
    accum *= momentum
    accum += grad
    if use_nesterov:
        var -= grad * lr
        step = accum * momentum
        step *= lr
        var -= step
    else:
        var -= accum * lr


@_update_op("Adagrad", slots=["accum"], args=["lr", "grad"], attrs={"update_slots": ("bool", True)})
def _adagrad(xp: ModuleType, var: Array, accum: Array, lr: Array, grad: Array, *, update_slots: bool) -> None:
    if update_slots:
        accum += grad * grad
    step = xp.multiply(grad, lr, out=xp.empty_like(var))
    step /= xp.sqrt(accum)
    var -= step


@_update_op("AdagradV2", slots=["accum"], args=["lr", "epsilon", "grad"], attrs={"update_slots": ("bool", True)})
def _adagrad_v2(
    xp: ModuleType, var: Array, accum: Array, lr: Array, epsilon: Array, grad: Array, *, update_slots: bool
) -> None:
    if update_slots:
        accum += grad * grad
    step = xp.multiply(grad, lr, out=xp.empty_like(var))
    step /= xp.sqrt(accum) + epsilon
    var -= step


@_update_op(
    "Adam",
    slots=["m", "v"],
    args=["beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon", "grad"],
    sparse=False,
    attrs={"use_nesterov": ("bool", False)},
)
def _adam(
    xp: ModuleType,
    var: Array,
    m: Array,
    v: Array,
    beta1_power: Array,
    beta2_power: Array,
    lr: Array,
    beta1: Array,
    beta2: Array,
    epsilon: Array,
    grad: Array,
    *,
    use_nesterov: bool,
) -> None:
    alpha = lr * xp.sqrt(1 - beta2_power) / (1 - beta1_power)
    _move_towards(xp, m, grad, 1 - beta1)
    _move_towards(xp, v, grad * grad, 1 - beta2)
    step = xp.multiply(m, beta1 if use_nesterov else alpha, out=xp.empty_like(var))
    if use_nesterov:
        step += grad * (1 - beta1)
        step *= alpha
    denominator = xp.sqrt(v, out=xp.empty_like(var))
    denominator += epsilon
    step /= denominator
    var -= step


@_update_op("RMSProp", slots=["ms", "mom"], args=["lr", "rho", "momentum", "epsilon", "grad"])
def _rms_prop(
    xp: ModuleType, var: Array, ms: Array, mom: Array, lr: Array, rho: Array, momentum: Array, epsilon: Array, grad: Array
) -> None:
    _move_towards(xp, ms, grad * grad, 1 - rho)
    denominator = xp.add(ms, epsilon, out=xp.empty_like(ms))
    _rms_step(xp, var, mom, denominator, lr, momentum, grad)


@_update_op("CenteredRMSProp", slots=["mg", "ms", "mom"], args=["lr", "rho", "momentum", "epsilon", "grad"])
def _centered_rms_prop(
    xp: ModuleType,
    var: Array,
    mg: Array,
    ms: Array,
    mom: Array,
    lr: Array,
    rho: Array,
    momentum: Array,
    epsilon: Array,
    grad: Array,
) -> None:
    _move_towards(xp, ms, grad * grad, 1 - rho)
    _move_towards(xp, mg, grad, 1 - rho)
    denominator = xp.multiply(mg, mg, out=xp.empty_like(mg))
    xp.subtract(ms, denominator, out=denominator)
    denominator += epsilon
    _rms_step(xp, var, mom, denominator, lr, momentum, grad)


def _rms_step(xp: ModuleType, var: Array, mom: Array, denominator: Array, lr: Array, momentum: Array, grad: Array) -> None:
    """mom = mom * momentum + grad * lr / sqrt(denominator); var -= mom. ``denominator`` is used up."""
    xp.sqrt(denominator, out=denominator)
    mom *= momentum
    xp.divide(grad * lr, denominator, out=denominator)
    mom += denominator
    var -= mom


def _move_towards(xp: ModuleType, average: Array, value: Array, weight: Array) -> None:
    """average += (value - average) * weight."""
    step = xp.subtract(value, average, out=xp.empty_like(average))
    step *= weight
    average += step


@_update_op("Adadelta", slots=["accum", "accum_update"], args=["lr", "rho", "epsilon", "grad"])
def _adadelta(
    xp: ModuleType, var: Array, accum: Array, accum_update: Array, lr: Array, rho: Array, epsilon: Array, grad: Array
) -> None:
    _move_towards(xp, accum, grad * grad, 1 - rho)
    update = xp.sqrt((accum_update + epsilon) / (accum + epsilon)) * grad
    _move_towards(xp, accum_update, update * update, 1 - rho)
    var -= update * lr


@_update_op("ProximalGradientDescent", args=["alpha", "l1", "l2", "delta"], grad="delta", sparse=False)
@_update_op("ProximalGradientDescent", args=["alpha", "l1", "l2", "grad"], dense=False)
def _proximal_gradient_descent(xp: ModuleType, var: Array, alpha: Array, l1: Array, l2: Array, grad: Array) -> None:
    _shrink(xp, var, var - grad * alpha, alpha, l1, l2)


@_update_op("ProximalAdagrad", slots=["accum"], args=["lr", "l1", "l2", "grad"])
def _proximal_adagrad(xp: ModuleType, var: Array, accum: Array, lr: Array, l1: Array, l2: Array, grad: Array) -> None:
    accum += grad * grad
    rate = lr / xp.sqrt(accum)
    _shrink(xp, var, var - grad * rate, rate, l1, l2)


def _shrink(xp: ModuleType, var: Array, moved: Array, rate: Array, l1: Array, l2: Array) -> None:
    """var = the minimum of l1 |x| + l2/2 x^2 + (x - moved)^2 / (2 rate)."""
    var[...] = xp.sign(moved) * xp.maximum(xp.absolute(moved) - rate * l1, 0) / (1 + rate * l2)


@_update_op(
    "AdagradDA",
    slots=["gradient_accumulator", "gradient_squared_accumulator"],
    args=["grad", "lr", "l1", "l2", "global_step"],
    integers=["global_step"],
)
def _adagrad_da(
    xp: ModuleType,
    var: Array,
    total: Array,
    squares: Array,
    grad: Array,
    lr: Array,
    l1: Array,
    l2: Array,
    global_step: Array,
) -> None:
    total += grad
    squares += grad * grad
    steps = global_step.astype(var.dtype)
    kept = xp.sign(total) * xp.maximum(xp.absolute(total) - l1 * steps, 0)
    var[...] = -lr * kept / (l2 * steps * lr + xp.sqrt(squares))


_FTRL_ATTRS: dict[str, tuple[str, Any]] = {"multiply_linear_by_lr": ("bool", False)}


@_update_op("Ftrl", slots=["accum", "linear"], args=["grad", "lr", "l1", "l2", "lr_power"], attrs=_FTRL_ATTRS)
def _ftrl(
    xp: ModuleType,
    var: Array,
    accum: Array,
    linear: Array,
    grad: Array,
    lr: Array,
    l1: Array,
    l2: Array,
    lr_power: Array,
    *,
    multiply_linear_by_lr: bool,
) -> None:
    _follow_leader(xp, var, accum, linear, grad, grad, lr, l1, l2, lr_power, multiply_linear_by_lr)


@_update_op("FtrlV2", slots=["accum", "linear"], args=["grad", "lr", "l1", "l2", "l2_shrinkage", "lr_power"], attrs=_FTRL_ATTRS)
def _ftrl_v2(
    xp: ModuleType,
    var: Array,
    accum: Array,
    linear: Array,
    grad: Array,
    lr: Array,
    l1: Array,
    l2: Array,
    l2_shrinkage: Array,
    lr_power: Array,
    *,
    multiply_linear_by_lr: bool,
) -> None:
    shrinking = grad + 2 * l2_shrinkage * var
    _follow_leader(xp, var, accum, linear, grad, shrinking, lr, l1, l2, lr_power, multiply_linear_by_lr)


def _follow_leader(
    xp: ModuleType,
    var: Array,
    accum: Array,
    linear: Array,
    grad: Array,
    pull: Array,
    lr: Array,
    l1: Array,
    l2: Array,
    lr_power: Array,
    scaled: bool,
) -> None:
    """The leader after the gradient ``grad``, of which ``pull`` counts for ``linear``; that is kept times lr if ``scaled``."""
    before = accum**-lr_power
    accum += grad * grad
    after = accum**-lr_power
    unit = 1 if scaled else lr  # what rates and regularization are divided by
    linear += pull * (lr / unit) - (after - before) / unit * var
    limit = l1 * (lr / unit)
    curvature = after / unit + 2 * l2 * (lr / unit)
    far = xp.absolute(linear) > limit
    var[...] = xp.where(far, (xp.sign(linear) * limit - linear) / curvature, xp.zeros_like(var))
