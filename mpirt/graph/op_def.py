"""The registry of operation types: signature, shape function, kernels, gradient.

Owns: what an operation type is and which kernels it has. Does not own operations in a graph (``graph.graph``) or how
kernels are run (``runtime``). An op family's file registers all facets of its ops in this order:

    @register_op("Scale", inputs=["x: T"], outputs=["y: T"], attrs={"factor": "float"}, T=FLOATING)
    def _scale_shape(ctx): return [ctx.shape("x")]

    @register_kernel("Scale")
    def _scale(ctx, x, *, factor): return ctx.xp.multiply(x, x.dtype.type(factor))

    @register_gradient("Scale")
    def _scale_grad(op, dy): return [scale(dy, op.get_attr("factor"))]

A kernel's keyword-only parameters are attributes of the op, bound once when a program is compiled; a kernel never
changes its inputs. Names of types, arguments and attributes are TensorFlow's, so that a GraphDef means the same here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import DType
from mpirt.graph import constants
from mpirt.graph.shapes import Shape

if TYPE_CHECKING:
    from mpirt.graph.function import Function
    from mpirt.graph.operation import Operation, Tensor

F = TypeVar("F", bound=Callable[..., Any])

# Kinds of attribute, TensorFlow's words (op_def.proto): each may also be a list, "list(int)".
ATTR_KINDS = ("string", "int", "float", "bool", "type", "shape", "tensor", "func")


@dataclass(frozen=True, slots=True)
class ArgDef:
    """One input or output: ``x: T``, ``n: int32``, ``values: N*T``, ``args: Tin`` (a list of types), ``ref: Ref(T)``."""

    name: str
    dtype: DType | None = None  # a fixed type, or
    type_attr: str = ""  # the attribute that holds the type, or
    list_attr: str = ""  # the attribute that holds a list of types: as many tensors
    number_attr: str = ""  # the attribute that holds how many tensors there are
    is_ref: bool = False

    @property
    def is_list(self) -> bool:
        """Whether the argument is a list of tensors."""
        return bool(self.list_attr or self.number_attr)


@dataclass(frozen=True, slots=True)
class AttrDef:
    """One attribute: its kind, default (``REQUIRED`` if none) and, for types, the allowed ones."""

    name: str
    kind: str
    default: Any
    allowed: tuple[DType, ...] = ()


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


class KernelContext(Protocol):
    """What a kernel may use beside its inputs. Made once for each operation of a compiled program."""

    xp: ModuleType
    """Array namespace of the device: numpy or cupy."""
    op: Operation

    def resource(self, factory: Callable[[str], Any], private: bool = False) -> Any:
        """The state (variable cell, queue, ...) of this op on its task; ``factory(name)`` makes it the first time.

        It is found by (container, ``shared_name`` attribute or the op's name), as in TensorFlow. With ``private``, what has
        no ``shared_name`` belongs to the session: no other session meets it, and it ends with the session.
        """

    def rng(self, seed: int, seed2: int) -> np.random.Generator:
        """Counter-based stream of this execution of this op: the same seeds give the same numbers on any rank."""

    def run(self, body: Function, inputs: Sequence[Any]) -> list[Any]:
        """Outputs of a body for ``inputs``, computed on this op's task; it is compiled the first time."""


class Pending(Protocol):
    """What an operation waits for: an element of a queue, a tensor on its way. It has one waiter."""

    on_ready: Callable[[], None] | None
    """Called once, by whatever thread makes it ready, holding no lock; None if nobody asked, or if it must be polled."""

    def ready(self) -> bool:
        """Whether it has come to its end, well or badly. Cheap: asked again and again."""

    def result(self) -> Any:
        """What the kernel returns; raises what the kernel raises. Once, when ready."""

    def cancel(self) -> bool:
        """Take it back. True: nothing has happened and nothing will. False: it came to its end before; take its result."""

    def describe(self) -> str:
        """What is waited for, for reports: "an element of queue 'jobs' on /job:ps/task:0"."""


class Blocked(Exception):  # noqa: N818  (it is news, not an error)
    """Raised by a kernel that can't go on yet. The step waits for ``pending``, whose result becomes the kernel's."""

    def __init__(self, pending: Pending) -> None:
        super().__init__("blocked")
        self.pending = pending


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of an op type.

    ``direct`` names a function of the array namespace that is called with the inputs alone (``"add"``): the fastest
    form, and the one that may be given an output buffer. Otherwise ``function(ctx, *inputs, **attrs)`` is called.
    ``host`` names the inputs and outputs that live in host memory whatever the device (shapes, axes, indices of slices).
    ``memory`` says whose memory results are: ``"own"`` - their own, and no input is kept when the kernel has returned;
    ``"view"`` - the one result may be the first input or a view of it, nothing else is kept; ``""`` - nothing is promised.
    ``takes_out`` says that the function has an argument ``out``: an array with the static shape and type of the one result,
    for it to be written into (see `fitting`), or None.
    """

    function: Callable[..., Any] | None
    direct: str
    attrs: tuple[str, ...]
    host: frozenset[str]
    memory: str
    takes_out: bool = False


def fitting(out: Any, shape: tuple[int, ...], *operands: Any) -> Any:
    """``out`` if a result of ``shape`` and of the type that all ``operands`` have can be written there, else None."""
    return out if out.shape == shape and all([out.dtype == operand.dtype for operand in operands]) else None


class Signature(NamedTuple):
    """What the types of its inputs and its attributes make of an operation."""

    attrs: Mapping[str, Any]  # all of them
    outputs: tuple[DType, ...]  # types


@dataclass(slots=True)
class OpDef:
    """An operation type and all that is registered for it."""

    name: str
    inputs: tuple[ArgDef, ...]
    outputs: tuple[ArgDef, ...]
    attrs: dict[str, AttrDef]
    stateful: bool
    shape_function: Callable[[ShapeContext], Sequence[Shape]]
    kernels: dict[str, Kernel] = field(default_factory=dict)
    gradient: Callable[..., Any] | None = None
    no_gradient_reason: str = ""
    takes_refs: bool = field(init=False)  # whether an input is a variable itself
    takes_handles: bool = field(init=False)  # whether an input may be a variable or resource itself
    takes_functions: bool = field(init=False)  # whether an attribute is a body
    signatures: dict[tuple[int, ...], Signature] | None = field(init=False)  # of operations without given attributes, by input types

    def __post_init__(self) -> None:
        self.takes_refs = any(arg.is_ref for arg in self.inputs)
        self.takes_handles = self.takes_refs or any(self._may_be_resource(arg) for arg in self.inputs)
        self.takes_functions = any("func" in attr.kind for attr in self.attrs.values())
        lists = any(arg.list_attr for arg in self.inputs + self.outputs)
        self.signatures = None if lists else {}  # lists of types are not shared

    def _may_be_resource(self, arg: ArgDef) -> bool:
        allowed = self.attrs[arg.type_attr].allowed if arg.type_attr else ()
        return dtypes.resource in allowed if allowed else arg.dtype is None or arg.dtype is dtypes.resource

    def __repr__(self) -> str:
        return f"<OpDef {self.name}>"


_OPS: dict[str, OpDef] = {}


def op_types() -> list[str]:
    """All registered operation types, sorted."""
    return sorted(_OPS)


def op_def(op_type: str) -> OpDef:
    """The definition of ``op_type``.

    Raises
    ------
    NotFoundError
        If there is none; the text lists similar types.
    """
    try:
        return _OPS[op_type]
    except KeyError:
        near = difflib.get_close_matches(op_type, _OPS, n=3)
        raise errors.NotFoundError(
            f"operation type {op_type!r} is not registered in mpirt ({len(_OPS)} types are).",
            hint=f"did you mean {' or '.join(near)}?" if near else "only operations of mpirt's registry can be used.",
        ) from None


def register_op(
    name: str,
    *,
    inputs: Iterable[str] = (),
    outputs: Iterable[str] = (),
    attrs: Mapping[str, str | tuple[str, Any]] | None = None,
    stateful: bool = False,
    **types: tuple[DType, ...],
) -> Callable[[F], F]:
    """Register an operation type; decorates its shape function.

    Parameters
    ----------
    name : TensorFlow's name of the type
    inputs, outputs : argument specs, see ``ArgDef``
    attrs : kind (``"bool"``, ``"list(int)"``) or (kind, default) of each attribute that no argument implies
    stateful : the op keeps state or has effects, so it is never folded, merged or run ahead
    **types : allowed types of each type attribute that the arguments name (``T=FLOATING``)
    """
    assert name not in _OPS, f"op type {name} is registered twice"
    table: dict[str, AttrDef] = {t: AttrDef(t, "type", REQUIRED, tuple(allowed)) for t, allowed in types.items()}
    for key, spec in (attrs or {}).items():
        kind, default = (spec, REQUIRED) if isinstance(spec, str) else spec
        assert kind.removeprefix("list(").removesuffix(")") in ATTR_KINDS, f"{name}.{key}: unknown attribute kind {kind}"
        allowed = table[key].allowed if key in table else ()
        table[key] = AttrDef(key, kind, default, allowed)
    in_args = tuple(_parse_arg(text, table) for text in inputs)
    out_args = tuple(_parse_arg(text, table) for text in outputs)

    def register(shape_function: F) -> F:
        _OPS[name] = OpDef(name, in_args, out_args, table, stateful, shape_function)
        return shape_function

    return register


def register_kernel(*names: str, devices: Sequence[str] = ("CPU", "GPU"), host: Sequence[str] = (), memory: str = "") -> Callable[[F], F]:
    """Register a kernel for one or more op types; decorates ``kernel(ctx, *inputs, **attrs)``.

    An op with one output returns an array, one with several a sequence of arrays, one with none anything. ``memory`` is a
    promise about results and inputs, see ``Kernel``: with it the inputs may be buffers that are used again. A kernel that
    promises ``"own"`` may have an argument ``out`` behind the inputs: an array for the one result, which the kernel may write
    into and return, or None.
    """
    assert memory in ("own", "view", ""), f"kernel of {names}: unknown promise {memory!r}"

    def register(function: F) -> F:
        keywords = tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY)
        takes_out = "out" in keywords
        assert not takes_out or memory == "own", f"kernel of {names}: a result in another's array is its own, and nothing is kept"
        attrs = tuple(k for k in keywords if k != "out")
        _add_kernel(names, devices, Kernel(function, "", attrs, frozenset(host), memory, takes_out))
        return function

    return register


def register_direct_kernel(direct: str, *names: str, devices: Sequence[str] = ("CPU", "GPU")) -> None:
    """Register function ``direct`` of the array namespace (a ufunc's name such as ``"add"``) as the kernel of ``names``."""
    _add_kernel(names, devices, Kernel(None, direct, (), frozenset(), "own"))


def register_gradient(*names: str) -> Callable[[F], F]:
    """Register a gradient; decorates ``gradient(op, *output_grads) -> [input_grad or None, ...]``.

    An output nobody uses has grad None. The result has one entry for each input tensor, in order.
    """

    def register(function: F) -> F:
        for name in names:
            assert _OPS[name].gradient is None and not _OPS[name].no_gradient_reason, f"{name} has a gradient already"
            _OPS[name].gradient = function
        return function

    return register


def no_gradient(*names: str, reason: str) -> None:
    """Record why the op types ``names`` have no gradient (``tf.gradients`` stops there)."""
    for name in names:
        assert _OPS[name].gradient is None, f"{name} has a gradient already"
        _OPS[name].no_gradient_reason = reason


def _add_kernel(names: Sequence[str], devices: Sequence[str], kernel: Kernel) -> None:
    for name in names:
        definition = _OPS[name]
        missing = [a for a in kernel.attrs if a not in definition.attrs]
        assert not missing, f"kernel of {name} asks for attributes {missing} that the op doesn't have"
        known = {a.name for a in definition.inputs + definition.outputs}
        assert kernel.host <= known, f"kernel of {name} names unknown host arguments {sorted(kernel.host - known)}"
        for device in devices:
            assert device not in definition.kernels, f"{name} has a {device} kernel already"
            definition.kernels[device] = kernel


def _parse_arg(text: str, attrs: dict[str, AttrDef]) -> ArgDef:
    """Read one argument spec; declares the attributes that it implies."""
    name, _, kind = (part.strip() for part in text.partition(":"))
    is_ref = kind.startswith("Ref(")
    if is_ref:
        kind = kind[4:-1]
    number, _, kind = kind.rpartition("*")
    if number:
        attrs.setdefault(number, AttrDef(number, "int", REQUIRED))
    if kind in attrs and attrs[kind].kind == "list(type)":
        return ArgDef(name, list_attr=kind, number_attr=number, is_ref=is_ref)
    if kind[0].isupper() or kind in attrs:
        attrs.setdefault(kind, AttrDef(kind, "type", REQUIRED))
        return ArgDef(name, type_attr=kind, number_attr=number, is_ref=is_ref)
    return ArgDef(name, dtype=dtypes.as_dtype(kind), number_attr=number, is_ref=is_ref)


class ShapeContext:
    """What a shape function sees: input shapes, constant inputs, attributes.

    A shape is a tuple of sizes with None for an unknown one, or None if even the number of dimensions is unknown.
    """

    __slots__ = ("definition", "inputs", "attrs", "num_outputs")

    def __init__(self, definition: OpDef, inputs: Sequence[Tensor], attrs: Mapping[str, Any], num_outputs: int) -> None:
        self.definition = definition
        self.inputs = inputs
        self.attrs = attrs
        self.num_outputs = num_outputs

    def _index(self, name: str) -> slice:
        start = 0
        for arg in self.definition.inputs:
            size = arg_size(arg, self.attrs)
            if arg.name == name:
                return slice(start, start + size)
            start += size
        raise AssertionError(f"{self.definition.name} has no input {name!r}")

    def tensor(self, name: str) -> Tensor:
        """The input tensor ``name``."""
        tensor: Tensor = self.inputs[self._index(name).start]
        return tensor

    def shape(self, name: str) -> Shape:
        """Static shape of the input ``name``."""
        return self.tensor(name).static_shape

    def shapes(self, name: str) -> list[Shape]:
        """Static shapes of the list input ``name``."""
        return [t.static_shape for t in self.inputs[self._index(name)]]

    def const(self, name: str) -> np.ndarray[Any, Any] | None:
        """Value of the input ``name`` if it is known while building, else None."""
        return constants.value(self.tensor(name))

    def const_shape(self, name: str) -> Shape:
        """The shape that the integer vector input ``name`` spells, with unknown entries as None."""
        return constants.shape(self.tensor(name))

    def dtype(self, name: str) -> DType:
        """Base type of the input ``name``."""
        return self.tensor(name).dtype.base_dtype

    def attr(self, name: str) -> Any:
        """Value of the attribute ``name``."""
        return self.attrs[name]


def arg_size(arg: ArgDef, attrs: Mapping[str, Any]) -> int:
    """How many tensors the argument ``arg`` stands for."""
    if arg.list_attr:
        return len(attrs[arg.list_attr])
    if arg.number_attr:
        return int(attrs[arg.number_attr])
    return 1


def arg_dtypes(arg: ArgDef, attrs: Mapping[str, Any]) -> list[DType]:
    """Types of the tensors that the argument ``arg`` stands for."""
    if arg.list_attr:
        types = list(attrs[arg.list_attr])
    else:
        types = [arg.dtype or attrs[arg.type_attr]] * arg_size(arg, attrs)
    return [t.ref for t in types] if arg.is_ref else types


def arg_ranges(args: Sequence[ArgDef], attrs: Mapping[str, Any]) -> dict[str, slice]:
    """Position of each argument's tensors in the flat list of inputs or outputs."""
    ranges, start = {}, 0
    for arg in args:
        size = arg_size(arg, attrs)
        ranges[arg.name] = slice(start, start + size)
        start += size
    return ranges
