"""The state of a variable on its task, and the operations that read and change it.

A ``VariableCell`` holds the value of one variable. Guarantee: an array that ``read`` gave out never changes afterwards.
Arrays are shared by convention and never written to; the cell changes its own array in place only while it is the sole
holder of it (a reference count says so), else it goes on with a private copy. So every reader keeps a consistent
snapshot, and an update costs no copy while nobody looks.
Kernels of ops with ``Ref(T)`` inputs get the cell; so do the readers of a resource handle (``resource_ops``).
Rows of a variable are changed in ``scatter_state_ops``; the user's ``Variable`` is in ``variables``.
"""

from __future__ import annotations

import threading
from sys import getrefcount
from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import ALL, INDEX, NUMERIC, DType, float32
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, compatible, merge, text
from mpirt.ops.apply import apply_op

__all__ = ["assign", "assign_add", "assign_sub", "count_up_to"]


class VariableCell:
    """Value of one variable on its task.

    Parameters
    ----------
    name : name of the resource on its task
    dtype, shape : as declared by the first graph that used it; sizes may be unknown
    where : the user's file and line of that declaration

    Notes
    -----
    A kernel that changes the value holds ``lock`` from ``writable()`` until it has written, so that no reader can get the
    array in between. On a GPU the readers' kernels must run in the stream of the writer's.
    """

    __slots__ = ("name", "dtype", "shape", "where", "lock", "_value")

    def __init__(self, name: str, dtype: DType, shape: Shape, where: str = "") -> None:
        self.name = name
        self.dtype = dtype.base_dtype
        self.shape = shape
        self.where = where
        self.lock = threading.RLock()
        self._value: Any = None

    @property
    def initialized(self) -> bool:
        """Whether there is a value."""
        return self._value is not None

    @property
    def current_shape(self) -> Shape:
        """Shape of the value, or as declared while there is none."""
        value = self._value
        return self.shape if value is None else value.shape

    def read(self) -> Any:
        """The value, an array that nobody may write to and that never changes.

        Raises
        ------
        FailedPreconditionError
            If the variable is not initialised.
        """
        with self.lock:
            value = self._value
        if value is None:
            raise self._uninitialized()
        return value

    def assign(self, array: Any) -> None:
        """Replace the value. The array is taken over and shared; one that isn't its own owner is copied."""
        stored = _ownable(array)
        with self.lock:
            self._value = stored

    def writable(self) -> Any:
        """The array to change in place; hold ``lock`` before and meanwhile, and drop the array before releasing it.

        It is the cell's own array if nobody else holds it, else a copy that becomes the value.

        Raises
        ------
        FailedPreconditionError
            If the variable is not initialised.
        """
        if self._value is None:
            raise self._uninitialized()
        if getrefcount(self._value) != _SOLE_HOLDER:  # as `_references`, which costs as much as a small update
            self._value = self._value.copy()
        return self._value

    def clear(self) -> None:
        """Forget the value: the variable is uninitialised again."""
        with self.lock:
            self._value = None

    def check_declared(self, dtype: DType, shape: Shape, op: Operation) -> None:
        """Refuse a declaration by ``op`` that contradicts this cell's.

        Raises
        ------
        InvalidArgumentError
            If the dtype differs or no array can have both shapes.
        """
        if dtype is self.dtype and (shape == self.shape or compatible(shape, self.shape)):
            return
        first = f" at {self.where}" if self.where else " by another graph"
        raise errors.InvalidArgumentError(
            f"{op.name!r} declares the variable {self.name!r} as {dtype.name} {text(shape)},"
            f" but on this task it is {self.dtype.name} {text(self.shape)}, declared{first}.",
            op=op,
            hint="give the two variables different names (or shared_name or container), or the same dtype and shape.",
        )

    def _references(self) -> int:
        return getrefcount(self._value)

    def _uninitialized(self) -> errors.FailedPreconditionError:
        return errors.FailedPreconditionError(
            f"Attempting to use uninitialized value {self.name}",
            hint="run its initializer first (tf.global_variables_initializer()), in a run of its own, or restore a checkpoint.",
        )

    def __repr__(self) -> str:
        state = "initialised" if self.initialized else "not initialised"
        return f"<VariableCell {self.name!r} {self.dtype.name} {text(self.current_shape)} {state}>"


def _ownable(array: Any) -> Any:
    """``array`` itself if it owns its memory, in C order and writeable, so that a cell may write to it later; else a copy."""
    if isinstance(array, np.ndarray) or not isinstance(array, np.generic | bytes):
        flags = array.flags
        # cupy's flags have no ``writeable``: its arrays always are.
        if flags.owndata and flags.c_contiguous and getattr(flags, "writeable", True):
            return array
        return array.copy()
    return np.array(array, object if isinstance(array, bytes) else None)


def _measure_sole_holder() -> int:
    """What ``_references`` says when only the cell holds the array; -1 (always copy) if counts don't tell."""
    cell = VariableCell("calibration", float32, ())
    cell.assign(np.zeros(()))
    alone = cell._references()
    held = cell.read()
    return alone if cell._references() > alone and held is not None else -1


_SOLE_HOLDER = _measure_sole_holder()


def cell_of(ctx: KernelContext, dtype: DType, shape: Shape) -> VariableCell:
    """The cell of the variable op that ``ctx`` is for; made the first time.

    Raises
    ------
    InvalidArgumentError
        If the task has something else of that name: another dtype, shape or kind of resource.
    """
    op = ctx.op
    cell = ctx.resource(lambda name: VariableCell(name, dtype, shape, op.location))
    if cell.__class__ is VariableCell and cell.dtype is dtype and cell.shape == shape:
        return cell
    if not isinstance(cell, VariableCell):
        raise errors.InvalidArgumentError(f"{op.name!r} wants a variable, but the resource of that name is {cell!r}.", op=op)
    cell.check_declared(dtype, shape, op)
    return cell


# -------------------------------------------------------------------------------------------------- the variable op

_VARIABLE_ATTRS: dict[str, Any] = {"shape": "shape", "container": ("string", ""), "shared_name": ("string", "")}


def variable_op(shape: Any, dtype: DType, name: str | None = None, container: str = "", shared_name: str = "") -> Tensor:
    """The reference tensor of a new variable; ``Variable`` is the face for users."""
    ref: Tensor = apply_op("VariableV2", name=name, shape=shape, dtype=dtype, container=container, shared_name=shared_name)
    return ref


@register_op("VariableV2", outputs=["ref: Ref(dtype)"], attrs=_VARIABLE_ATTRS, stateful=True, dtype=ALL)
def _variable_v2_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.attr("shape")]


@register_op("Variable", outputs=["ref: Ref(dtype)"], attrs=_VARIABLE_ATTRS, stateful=True, dtype=ALL)
def _variable_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.attr("shape") or None]  # this older op writes an unknown shape as ()


@register_kernel("VariableV2")
def _variable_v2(ctx: KernelContext, *, dtype: DType, shape: Shape) -> VariableCell:
    return cell_of(ctx, dtype, shape)


@register_kernel("Variable")
def _variable(ctx: KernelContext, *, dtype: DType, shape: Shape) -> VariableCell:
    return cell_of(ctx, dtype, shape or None)


no_gradient("VariableV2", "Variable", reason="it has no inputs")


@register_op("IsVariableInitialized", inputs=["ref: Ref(dtype)"], outputs=["is_initialized: bool"], dtype=ALL)
def _is_variable_initialized_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("IsVariableInitialized", host=("is_initialized",))
def _is_variable_initialized(ctx: KernelContext, ref: VariableCell) -> Any:
    return np.array(ref.initialized)


no_gradient("IsVariableInitialized", reason="it has no number to follow")


# TensorFlow builds a conditional for this; we ask the cell, and the underscore marks an op type of our own.
@register_op("_InitializedValue", inputs=["ref: Ref(T)", "initial_value: T"], outputs=["value: T"], stateful=True, T=ALL)
def _initialized_value_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.shape("ref")]


@register_kernel("_InitializedValue")
def _initialized_value(ctx: KernelContext, ref: VariableCell, initial_value: Any) -> Any:
    with ref.lock:
        return ref.read() if ref.initialized else initial_value


no_gradient("_InitializedValue", reason="it makes initial values, which no loss is minimised over")


# ----------------------------------------------------------------------------------------------------------- assign


def assign(
    ref: Any, value: Any, validate_shape: bool | None = None, use_locking: bool | None = None, name: str | None = None
) -> Tensor:
    """Set the variable ``ref`` to ``value``.

    Parameters
    ----------
    ref : Variable or its reference tensor
    value : tensor of the variable's dtype
    validate_shape : the value must have the variable's shape (the default); else the variable takes the value's shape
    use_locking : accepted for TensorFlow's sake; a change always excludes other changes and readers

    Returns
    -------
    Tensor
        ``ref``, for those who want the value after the assignment.

    Raises
    ------
    ValueError
        If the static shapes don't match; InvalidArgumentError in the step if the values' don't.
    """
    attrs = _given(validate_shape=validate_shape, use_locking=use_locking)
    ref_out: Tensor = apply_op("Assign", ref, value, name=name, **attrs)
    return ref_out


def _given(**attrs: Any) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if value is not None}


_REF_AND_VALUE = ["ref: Ref(T)", "value: T"]
_REF_OUT = ["output_ref: Ref(T)"]


@register_op(
    "Assign",
    inputs=_REF_AND_VALUE,
    outputs=_REF_OUT,
    attrs={"validate_shape": ("bool", True), "use_locking": ("bool", True)},
    T=ALL,
)
def _assign_shape(ctx: ShapeContext) -> list[Shape]:
    return [merge(ctx.shape("ref"), ctx.shape("value")) if ctx.attr("validate_shape") else ctx.shape("value")]


@register_kernel("Assign")
def _assign(ctx: KernelContext, ref: VariableCell, value: Any, *, validate_shape: bool) -> VariableCell:
    with ref.lock:
        # Never against the declaration: shapes that follow from it are built into the program.
        check_shape(ctx, ref, value, ref.current_shape if validate_shape else ref.shape)
        ref.assign(value)
    return ref


def check_shape(ctx: KernelContext, ref: VariableCell, value: Any, wanted: Shape) -> None:
    """InvalidArgumentError unless ``value`` has the shape ``wanted`` of the variable."""
    if wanted != value.shape and not compatible(wanted, value.shape):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): a value of shape {text(value.shape)} doesn't fit the variable {ref.name!r}"
            f" of shape {text(wanted)}.",
            op=ctx.op,
            hint="a variable that changes its shape is made with validate_shape=False and assigned with validate_shape=False.",
        )


def assign_add(ref: Any, value: Any, use_locking: bool | None = None, name: str | None = None) -> Tensor:
    """Add ``value`` to the variable ``ref``, which is returned; see ``assign``."""
    ref_out: Tensor = apply_op("AssignAdd", ref, value, name=name, **_given(use_locking=use_locking))
    return ref_out


def assign_sub(ref: Any, value: Any, use_locking: bool | None = None, name: str | None = None) -> Tensor:
    """Subtract ``value`` from the variable ``ref``, which is returned; see ``assign``."""
    ref_out: Tensor = apply_op("AssignSub", ref, value, name=name, **_given(use_locking=use_locking))
    return ref_out


@register_op("AssignAdd", inputs=_REF_AND_VALUE, outputs=_REF_OUT, attrs={"use_locking": ("bool", False)}, T=NUMERIC)
@register_op("AssignSub", inputs=_REF_AND_VALUE, outputs=_REF_OUT, attrs={"use_locking": ("bool", False)}, T=NUMERIC)
def _assign_add_shape(ctx: ShapeContext) -> list[Shape]:
    return [merge(ctx.shape("ref"), ctx.shape("value"))]


@register_kernel("AssignAdd", memory="own")
def _assign_add(ctx: KernelContext, ref: VariableCell, value: Any) -> VariableCell:
    add_to(ctx, ref, value)
    return ref


@register_kernel("AssignSub", memory="own")
def _assign_sub(ctx: KernelContext, ref: VariableCell, value: Any) -> VariableCell:
    subtract_from(ctx, ref, value)
    return ref


def add_to(ctx: KernelContext, ref: VariableCell, value: Any) -> None:
    """Add ``value`` to the value of ``ref``; the shapes must be the same."""
    with ref.lock:
        array = ref.writable()
        if array.shape != value.shape:
            check_shape(ctx, ref, value, array.shape)
        ctx.xp.add(array, value, array)


def subtract_from(ctx: KernelContext, ref: VariableCell, value: Any) -> None:
    """Subtract ``value`` from the value of ``ref``; the shapes must be the same."""
    with ref.lock:
        array = ref.writable()
        if array.shape != value.shape:
            check_shape(ctx, ref, value, array.shape)
        ctx.xp.subtract(array, value, array)


no_gradient("Assign", "AssignAdd", "AssignSub", reason="a change of state is not a function of its inputs")


# ------------------------------------------------------------------------------------------------------ count_up_to


def count_up_to(ref: Any, limit: int, name: str | None = None) -> Tensor:
    """The value of the integer scalar ``ref``, which then grows by one; OutOfRangeError in the step once it is ``limit``."""
    before: Tensor = apply_op("CountUpTo", ref, name=name, limit=limit)
    return before


@register_op("CountUpTo", inputs=["ref: Ref(T)"], outputs=["output: T"], attrs={"limit": "int"}, T=INDEX)
def _count_up_to_shape(ctx: ShapeContext) -> list[Shape]:
    return [merge(ctx.shape("ref"), ())]


@register_kernel("CountUpTo")
def _count_up_to(ctx: KernelContext, ref: VariableCell, *, limit: int) -> Any:
    with ref.lock:
        value = ref.read()
        if int(value) >= limit:
            raise errors.OutOfRangeError(f"{ctx.op.name!r}: the variable {ref.name!r} reached its limit of {limit}.", op=ctx.op)
        ref.assign(value + value.dtype.type(1))
    return value


no_gradient("CountUpTo", reason="integers have no gradient")
