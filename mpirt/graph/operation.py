"""Operations and the tensors they produce: the elements of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mpirt.cluster import device_spec
from mpirt.dtypes import DType
from mpirt.graph.default_session import session_or_default
from mpirt.graph.op_def import OpDef, op_def
from mpirt.graph.shapes import Shape, TensorShape, as_shape, merge

if TYPE_CHECKING:
    from mpirt.graph.graph import Graph


class Tensor:
    """One output of an operation. It has no value; a session computes it."""

    __slots__ = ("op", "value_index", "dtype", "static_shape")
    __array_priority__ = 100  # numpy leaves ``array + tensor`` to us

    def __init__(self, op: Operation, value_index: int, dtype: DType, static_shape: Shape) -> None:
        self.op = op
        self.value_index = value_index
        self.dtype = dtype
        self.static_shape = static_shape

    @property
    def name(self) -> str:
        """Name as in feeds and fetches: ``op:index``."""
        return f"{self.op.name}:{self.value_index}"

    @property
    def graph(self) -> Graph:
        """The graph this tensor belongs to."""
        return self.op.graph

    @property
    def device(self) -> str:
        """Device asked for by the operation, as written."""
        return self.op.device

    @property
    def shape(self) -> TensorShape:
        """Static shape."""
        return TensorShape(self.static_shape)

    def get_shape(self) -> TensorShape:
        """Static shape (TensorFlow 1's spelling)."""
        return TensorShape(self.static_shape)

    def set_shape(self, shape: Any) -> None:
        """Add what is known of the shape; ValueError if it contradicts what was known."""
        self.static_shape = merge(self.static_shape, as_shape(shape))

    def consumers(self) -> list[Operation]:
        """Operations that read this tensor."""
        return [op for op in self.graph.get_operations() if any(t is self for t in op.inputs)]

    def eval(self, feed_dict: Any = None, session: Any = None) -> Any:
        """Value in ``session`` or the default session."""
        return session_or_default(session, "eval()").run(self, feed_dict)

    def __iter__(self) -> Iterator[Tensor]:
        if self.static_shape is None or not self.static_shape or self.static_shape[0] is None:
            raise TypeError(f"can't iterate over {self!r}: the size of its first dimension is not known.")
        return iter([self[i] for i in range(self.static_shape[0])])

    def __bool__(self) -> bool:
        raise TypeError(
            f"the truth of {self!r} is not known while the graph is built. "
            "Use `if t is not None:` to test for a tensor, and tf.cond or tf.where for a choice made in the graph."
        )

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<mpirt.Tensor {self.name!r} shape={TensorShape(self.static_shape)} dtype={self.dtype.name}>"

    # Operators build operations; the functions come from the ops layer (``set_operator``).
    def __add__(self, other: Any) -> Tensor:
        return _operators["add"](self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _operators["add"](other, self)

    def __sub__(self, other: Any) -> Tensor:
        return _operators["sub"](self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _operators["sub"](other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _operators["mul"](self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _operators["mul"](other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _operators["truediv"](self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _operators["truediv"](other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return _operators["floordiv"](self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return _operators["floordiv"](other, self)

    def __mod__(self, other: Any) -> Tensor:
        return _operators["mod"](self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return _operators["mod"](other, self)

    def __pow__(self, other: Any) -> Tensor:
        return _operators["pow"](self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return _operators["pow"](other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _operators["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _operators["matmul"](other, self)

    def __neg__(self) -> Tensor:
        return _operators["neg"](self)

    def __abs__(self) -> Tensor:
        return _operators["abs"](self)

    def __and__(self, other: Any) -> Tensor:
        return _operators["and"](self, other)

    def __rand__(self, other: Any) -> Tensor:
        return _operators["and"](other, self)

    def __or__(self, other: Any) -> Tensor:
        return _operators["or"](self, other)

    def __ror__(self, other: Any) -> Tensor:
        return _operators["or"](other, self)

    def __xor__(self, other: Any) -> Tensor:
        return _operators["xor"](self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return _operators["xor"](other, self)

    def __invert__(self) -> Tensor:
        return _operators["invert"](self)

    def __lt__(self, other: Any) -> Tensor:
        return _operators["less"](self, other)

    def __le__(self, other: Any) -> Tensor:
        return _operators["less_equal"](self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _operators["greater"](self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _operators["greater_equal"](self, other)

    def __getitem__(self, key: Any) -> Tensor:
        return _operators["getitem"](self, key)


_operators: dict[str, Callable[..., Tensor]] = {}


def set_operator(name: str, function: Callable[..., Tensor]) -> None:
    """Give the tensors' operator ``name`` its meaning; called once by the ops layer."""
    assert name not in _operators, f"operator {name} is set twice"
    _operators[name] = function


class Operation:
    """One node of a graph: a type, inputs, attributes, the device asked for, and where the user made it."""

    __slots__ = ("graph", "name", "type", "definition", "inputs", "control_inputs", "outputs", "attrs", "device", "index", "_frames")

    def __init__(
        self,
        graph: Graph,
        name: str,
        definition: OpDef,
        inputs: tuple[Tensor, ...],
        attrs: Mapping[str, Any],
        frames: tuple[tuple[str, int], ...],
    ) -> None:
        self.graph = graph
        self.name = name
        self.type = definition.name
        self.definition = definition
        self.inputs = inputs
        self.control_inputs: tuple[Operation, ...] = ()
        self.outputs: tuple[Tensor, ...] = ()
        self.attrs = attrs  # operations may share them: see `set_attr`
        self.device = ""
        self.index = -1  # position in creation order
        self._frames = frames

    @property
    def qualified_name(self) -> str:
        """The name; inside a body with the body's name before it, so that no operation of another graph has it."""
        return self.graph.qualifier + self.name

    def get_attr(self, name: str) -> Any:
        """Value of the attribute ``name``; ValueError if there is none."""
        try:
            return self.attrs[name]
        except KeyError:
            raise ValueError(f"operation {self.name!r} ({self.type}) has no attribute {name!r}; it has {sorted(self.attrs)}.") from None

    def set_attr(self, name: str, value: Any) -> None:
        """Give the attribute ``name`` another value. For the layers that build graphs; compiled steps aren't affected."""
        self.attrs = {**self.attrs, name: value}

    @property
    def location(self) -> str:
        """The user's file and line, ``"train.py:41"``; empty if unknown."""
        return f"{self._frames[0][0]}:{self._frames[0][1]}" if self._frames else ""

    @property
    def traceback(self) -> tuple[tuple[str, int], ...]:
        """(file, line) of the user's frames, innermost first."""
        return self._frames

    @property
    def node_def(self) -> Any:
        """NodeDef of this operation (``tensorboard.compat.proto``)."""
        from mpirt.graph.graph_def import to_node_def

        return to_node_def(self)

    @property
    def op_def(self) -> OpDef:
        """Definition of the operation's type."""
        return self.definition

    def retype(self, op_type: str, more: Iterable[tuple[DType, Shape]]) -> None:
        """Make this an operation of the type ``op_type``, of the same inputs and attributes and with ``more`` outputs.

        For the ops layer: an operation that learns later what else it must give out. Compiled steps aren't affected.
        """
        self.definition = op_def(op_type)
        self.type = op_type
        for dtype, shape in more:
            self.outputs += (Tensor(self, len(self.outputs), dtype, shape),)

    def colocation_groups(self) -> list[bytes]:
        """The same as ``colocated_with``, in TensorFlow's form: ``b"loc:@name"``."""
        return [f"loc:@{name}".encode() for name in self.colocated_with()]

    def colocated_with(self) -> list[str]:
        """Names of the operations whose device this one must share; its own name if none were asked for."""
        asked = [text[5:] for text in self.attrs.get("_class", ()) if text.startswith("loc:@")]
        return asked or [self.name]

    def run(self, feed_dict: Any = None, session: Any = None) -> None:
        """Run this operation in ``session`` or the default session."""
        session_or_default(session, "run()").run(self, feed_dict)

    def _set_device(self, device: Any) -> None:
        """Ask for another device; text is checked, as in a ``device`` block."""
        self.device = str(device_spec.parse(device) if isinstance(device, str) else device)

    def __repr__(self) -> str:
        return f"<mpirt.Operation {self.name!r} type={self.type}>"
