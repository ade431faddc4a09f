"""Nested Python values of tensors: taken apart to a flat list, and put together again.

Lists, tuples, named tuples, dicts (in the order of their sorted keys), IndexedSlices and SparseTensor are nodes. None and
operations have a place in the structure, but no tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpirt.graph.graph import Operation
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.sparse_tensor import SparseTensor

LEAF, NONE, OPERATION = "a tensor", "None", "an operation"

# Classes made of tensors, with the arguments of their constructors, which are attributes too.
_COMPOSITES = {IndexedSlices: ("values", "indices", "dense_shape"), SparseTensor: ("indices", "values", "dense_shape")}


@dataclass(frozen=True)
class Structure:
    """Shape of a nested value: ``kind`` is the type of a node, or one of LEAF, NONE, OPERATION."""

    kind: Any
    keys: tuple[Any, ...] = ()
    parts: tuple[Structure, ...] = ()

    def __str__(self) -> str:
        if not isinstance(self.kind, type):
            return "." if self.kind == LEAF else str(self.kind)
        keys = [f"{key!r}: " for key in self.keys] or [""] * len(self.parts)
        return f"{self.kind.__name__}({', '.join(f'{k}{p}' for k, p in zip(keys, self.parts, strict=True))})"


def flatten(value: Any) -> tuple[list[Any], Structure]:
    """The leaves of ``value``, operations among them, and its structure."""
    leaves: list[Any] = []
    return leaves, _structure(value, leaves)


def _structure(value: Any, leaves: list[Any]) -> Structure:
    if value is None:
        return Structure(NONE)
    if isinstance(value, Mapping):
        keys = tuple(sorted(value))
        return Structure(type(value), keys, tuple(_structure(value[k], leaves) for k in keys))
    if isinstance(value, list | tuple):
        return Structure(type(value), (), tuple(_structure(v, leaves) for v in value))
    if type(value) in _COMPOSITES:
        parts = (getattr(value, part) for part in _COMPOSITES[type(value)])
        return Structure(type(value), (), tuple(_structure(v, leaves) for v in parts))
    leaves.append(value)
    return Structure(OPERATION if isinstance(value, Operation) else LEAF)


def pack(structure: Structure, tensors: Sequence[Any], operation: Any = None) -> Any:
    """The value of ``structure`` with ``tensors`` at its leaves, and ``operation`` where an operation was."""
    rest = iter(tensors)
    value = _pack(structure, rest, operation)
    assert next(rest, rest) is rest, "more tensors than the structure has leaves"
    return value


def _pack(structure: Structure, rest: Iterator[Any], operation: Any) -> Any:
    kind = structure.kind
    if kind == LEAF:
        return next(rest)
    if kind in (NONE, OPERATION):
        return operation if kind == OPERATION else None
    parts = [_pack(p, rest, operation) for p in structure.parts]
    make: Callable[..., Any] = kind
    if structure.keys or issubclass(kind, Mapping):
        return make(zip(structure.keys, parts, strict=True))
    if kind in _COMPOSITES or hasattr(kind, "_make"):
        return make(*parts)
    return make(parts)
