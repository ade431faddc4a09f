"""Static shapes: what is known of a tensor's shape while the graph is built.

Inside mpirt a shape is a plain tuple of sizes with None for an unknown size (``(None, 64)``), or None when even the
number of dimensions is unknown. ``TensorShape`` and ``Dimension`` are TensorFlow's public faces of the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from mpirt import errors

Shape: TypeAlias = tuple[int | None, ...] | None


def as_shape(value: Any) -> Shape:
    """The plain shape of a TensorShape, a list or tuple of sizes (-1 and None unknown), one size, or None."""
    if value is None:
        return None
    if isinstance(value, TensorShape):
        return value.dims_tuple
    if isinstance(value, Dimension):
        return (value.value,)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, int):
        value = (value,)
    if hasattr(value, "unknown_rank"):  # TensorShapeProto
        return None if value.unknown_rank else tuple(None if d.size < 0 else int(d.size) for d in value.dim)
    return tuple(_as_size(d) for d in value)


def _as_size(value: Any) -> int | None:
    if isinstance(value, Dimension):
        value = value.value
    if value is None:
        return None
    try:
        size = value.__index__()
    except AttributeError:
        raise TypeError(f"a shape's size must be an int or None, not {value!r}.") from None
    if size < -1:
        raise ValueError(f"a shape's size must not be negative: {size}.")
    return None if size == -1 else int(size)


def num_elements(shape: Shape) -> int | None:
    """Product of the sizes, None if one is unknown."""
    if shape is None:
        return None
    count = 1
    for size in shape:
        if size is None:
            return None
        count *= size
    return count


def is_static(shape: Shape) -> bool:
    """Whether every size is known."""
    return shape is not None and None not in shape


def compatible(a: Shape, b: Shape) -> bool:
    """Whether one array can have both shapes."""
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(a, b, strict=True))


def merge(a: Shape, b: Shape) -> Shape:
    """What is known from both.

    Raises
    ------
    ValueError
        If the shapes are not compatible.
    """
    if a is None or a == b:
        return b
    if b is None:
        return a
    if not compatible(a, b):
        raise ValueError(f"Shapes {text(a)} and {text(b)} are not compatible")
    return tuple(y if x is None else x for x, y in zip(a, b, strict=True))


def broadcast(a: Shape, b: Shape) -> Shape:
    """Shape of an elementwise operation of two tensors (numpy's broadcasting).

    Raises
    ------
    ValueError
        If the shapes can't be broadcast together.
    """
    if a is None or b is None:
        return None
    if a == b and None not in a:
        return a
    out: list[int | None] = []
    for i in range(max(len(a), len(b))):
        x = a[len(a) - 1 - i] if i < len(a) else 1
        y = b[len(b) - 1 - i] if i < len(b) else 1
        if x == 1:
            out.append(y)
        elif y == 1 or x == y:
            out.append(x)
        elif x is None or y is None:
            out.append(y if x is None else x)  # the known size is not 1, so it is the result's
        else:
            raise ValueError(f"Shapes {text(a)} and {text(b)} can't be broadcast together")
    return tuple(reversed(out))


def with_rank(shape: Shape, ndim: int, what: str = "tensor") -> tuple[int | None, ...]:
    """The shape, which must have ``ndim`` dimensions if it is known; all unknown if it isn't.

    Raises
    ------
    ValueError
        If it has another number of dimensions.
    """
    if shape is None:
        return (None,) * ndim
    if len(shape) != ndim:
        raise ValueError(f"{what} must have {ndim} dimension(s), but has shape {text(shape)}")
    return shape


def normalize_axis(axis: int, ndim: int, what: str = "axis") -> int:
    """``axis`` counted from the front.

    Raises
    ------
    ValueError
        If it is outside [-ndim, ndim).
    """
    if not -ndim <= axis < ndim:
        raise ValueError(f"{what} {axis} is outside [-{ndim}, {ndim}) for a tensor of {ndim} dimension(s)")
    return axis + ndim if axis < 0 else axis


def text(shape: Shape) -> str:
    """The shape as TensorFlow prints it: ``(?, 64)`` or ``<unknown>``."""
    if shape is None:
        return "<unknown>"
    inside = ", ".join("?" if d is None else str(d) for d in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


class Dimension:
    """One size of a ``TensorShape``; ``value`` is None when unknown."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = _as_size(value)

    def __int__(self) -> int:
        if self.value is None:
            raise TypeError("an unknown Dimension has no int value.")
        return self.value

    __index__ = __int__

    def __eq__(self, other: object) -> Any:
        if other is None:
            return self.value is None
        other_value = other.value if isinstance(other, Dimension) else other
        if self.value is None or other_value is None:
            return None
        return self.value == other_value

    def __hash__(self) -> int:
        return hash(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def _combine(self, other: Any, function: Any) -> Dimension:
        other_value = _as_size(other)
        return Dimension(None if self.value is None or other_value is None else function(self.value, other_value))

    def __add__(self, other: Any) -> Dimension:
        return self._combine(other, lambda a, b: a + b)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Dimension:
        return self._combine(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> Dimension:
        return self._combine(other, lambda a, b: a * b)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Dimension:
        return self._combine(other, lambda a, b: a // b)

    def __mod__(self, other: Any) -> Dimension:
        return self._combine(other, lambda a, b: a % b)

    def _order(self, other: Any, function: Any) -> bool | None:
        other_value = _as_size(other)
        return None if self.value is None or other_value is None else function(self.value, other_value)

    def __lt__(self, other: Any) -> bool | None:
        return self._order(other, lambda a, b: a < b)

    def __le__(self, other: Any) -> bool | None:
        return self._order(other, lambda a, b: a <= b)

    def __gt__(self, other: Any) -> bool | None:
        return self._order(other, lambda a, b: a > b)

    def __ge__(self, other: Any) -> bool | None:
        return self._order(other, lambda a, b: a >= b)

    def __repr__(self) -> str:
        return f"Dimension({self.value})"

    def __str__(self) -> str:
        return "?" if self.value is None else str(self.value)


class TensorShape:
    """Public face of a static shape; the methods TensorFlow-1 scripts use."""

    __slots__ = ("dims_tuple",)

    def __init__(self, dims: Any) -> None:
        self.dims_tuple: Shape = as_shape(dims)

    @property
    def dims(self) -> list[Dimension] | None:
        """List of ``Dimension``, None if the number of dimensions is unknown."""
        return None if self.dims_tuple is None else [Dimension(d) for d in self.dims_tuple]

    @property
    def ndims(self) -> int | None:
        """Number of dimensions, None if unknown."""
        return None if self.dims_tuple is None else len(self.dims_tuple)

    @property
    def rank(self) -> int | None:
        """The same as ``ndims`` (TensorFlow's other name)."""
        return self.ndims

    def as_list(self) -> list[int | None]:
        """Sizes as ints and None.

        Raises
        ------
        ValueError
            If the number of dimensions is unknown.
        """
        if self.dims_tuple is None:
            raise ValueError("as_list() is not defined on an unknown TensorShape.")
        return list(self.dims_tuple)

    def is_fully_defined(self) -> bool:
        """Whether every size is known."""
        return is_static(self.dims_tuple)

    def assert_is_fully_defined(self) -> None:
        """Raise ValueError unless every size is known."""
        if not self.is_fully_defined():
            raise ValueError(f"Shape {self} is not fully defined")

    def num_elements(self) -> int | None:
        """Number of elements, None if unknown."""
        return num_elements(self.dims_tuple)

    def is_compatible_with(self, other: Any) -> bool:
        """Whether one array can have both shapes."""
        return compatible(self.dims_tuple, as_shape(other))

    def assert_is_compatible_with(self, other: Any) -> None:
        """Raise ValueError unless one array can have both shapes."""
        merge(self.dims_tuple, as_shape(other))

    def merge_with(self, other: Any) -> TensorShape:
        """What is known from both; ValueError if they contradict."""
        return TensorShape(merge(self.dims_tuple, as_shape(other)))

    def concatenate(self, other: Any) -> TensorShape:
        """The sizes of this shape followed by the other's."""
        tail = as_shape(other)
        return TensorShape(None if self.dims_tuple is None or tail is None else self.dims_tuple + tail)

    def with_rank(self, rank: int) -> TensorShape:
        """This shape, which must be able to have ``rank`` dimensions."""
        return TensorShape(with_rank(self.dims_tuple, rank))

    def with_rank_at_least(self, rank: int) -> TensorShape:
        """This shape, which must not be known to have fewer than ``rank`` dimensions."""
        if self.dims_tuple is not None and len(self.dims_tuple) < rank:
            raise ValueError(f"Shape {self} must have rank at least {rank}")
        return self

    def as_proto(self) -> Any:
        """TensorShapeProto of this shape."""
        from tensorboard.compat.proto import tensor_shape_pb2

        proto = tensor_shape_pb2.TensorShapeProto()
        if self.dims_tuple is None:
            proto.unknown_rank = True
        else:
            proto.dim.extend(tensor_shape_pb2.TensorShapeProto.Dim(size=-1 if d is None else d) for d in self.dims_tuple)
        return proto

    def _known(self) -> Sequence[int | None]:
        if self.dims_tuple is None:
            raise ValueError("the number of dimensions of this TensorShape is unknown.")
        return self.dims_tuple

    def __len__(self) -> int:
        return len(self._known())

    def __iter__(self) -> Iterator[Dimension]:
        return iter([Dimension(d) for d in self._known()])

    def __getitem__(self, key: int | slice) -> Any:
        if self.dims_tuple is None:
            return TensorShape(None) if isinstance(key, slice) else Dimension(None)
        part = self.dims_tuple[key]
        return TensorShape(part) if isinstance(key, slice) else Dimension(part)

    def __bool__(self) -> bool:
        return self.dims_tuple is not None

    def __eq__(self, other: object) -> bool:
        try:
            return self.dims_tuple == as_shape(other)
        except (TypeError, ValueError, errors.OpError):
            return NotImplemented

    def __hash__(self) -> int:
        return hash(self.dims_tuple)

    def __repr__(self) -> str:
        if self.dims_tuple is None:
            return "TensorShape(None)"
        return f"TensorShape([{', '.join('None' if d is None else str(d) for d in self.dims_tuple)}])"

    def __str__(self) -> str:
        return text(self.dims_tuple)


def unknown_shape(rank: int | None = None) -> TensorShape:
    """A shape of which at most the number of dimensions is known."""
    return TensorShape(None if rank is None else [None] * rank)


def iter_sizes(shape: Iterable[Any]) -> list[int | None]:
    """Sizes of a shape-like sequence as ints and None."""
    return [_as_size(d) for d in shape]
