"""What ``run`` is asked for: nested fetches flattened to graph elements, and values put back into the same structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.ops.indexed_slices import IndexedSlices, IndexedSlicesValue
from mpirt.ops.sparse_tensor import SparseTensor, SparseTensorValue


class FetchMapper:
    """Flat form of ``fetches``.

    Parameters
    ----------
    graph : the session's graph
    fetches : a tensor, operation, variable, IndexedSlices, SparseTensor or name, or lists, tuples, namedtuples and dicts of these

    Attributes
    ----------
    leaves : tuple of Tensor or Operation
        Each element once.
    rebuild : function
        Of a sequence of the values of ``leaves``: the structure of the fetches with these in their places.

    Raises
    ------
    TypeError, ValueError
        If something can't be fetched, as TensorFlow does.
    """

    def __init__(self, graph: Graph, fetches: Any) -> None:
        self._graph = graph
        self._positions: dict[Tensor | Operation, int] = {}
        self.rebuild = self._flatten(fetches)
        self.leaves: tuple[Tensor | Operation, ...] = tuple(self._positions)

    def _leaf(self, element: Tensor | Operation) -> Callable[[Sequence[Any]], Any]:
        return itemgetter(self._positions.setdefault(element, len(self._positions)))

    def _flatten(self, fetch: Any) -> Callable[[Sequence[Any]], Any]:
        if isinstance(fetch, list):
            parts = [self._flatten(f) for f in fetch]
            return lambda values: [part(values) for part in parts]
        if isinstance(fetch, tuple):
            parts = [self._flatten(f) for f in fetch]
            make = type(fetch)._make if hasattr(fetch, "_make") else type(fetch)
            return lambda values: make([part(values) for part in parts])
        if isinstance(fetch, Mapping):
            items = {key: self._flatten(f) for key, f in fetch.items()}
            kind: Any = partial(defaultdict, fetch.default_factory) if isinstance(fetch, defaultdict) else type(fetch)
            return lambda values: kind([(key, part(values)) for key, part in items.items()])
        if isinstance(fetch, IndexedSlices):
            if fetch.dense_shape is not None:
                return self._flatten(IndexedSlicesValue(fetch.values, fetch.indices, fetch.dense_shape))
            first, second = self._leaf(fetch.values), self._leaf(fetch.indices)
            return lambda values: IndexedSlicesValue(first(values), second(values), None)
        if isinstance(fetch, SparseTensor):
            return self._flatten(SparseTensorValue(fetch.indices, fetch.values, fetch.dense_shape))
        try:
            return self._leaf(self._graph.as_graph_element(fetch))
        except TypeError:
            raise TypeError(
                f"Fetch argument {fetch!r} has invalid type {type(fetch).__name__!r}: it must be a tensor, operation, variable,"
                " name, or a list, tuple or dict of these."
            ) from None
        except (ValueError, KeyError) as error:
            raise ValueError(f"Fetch argument {fetch!r} cannot be interpreted as a Tensor. ({error.args[0]})") from None
