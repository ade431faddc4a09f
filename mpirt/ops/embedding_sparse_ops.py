"""Embeddings of sparse examples: rows of a table that may be cut into shards, combined for each example.

Each distinct id is looked up once, so a repeated one crosses ranks once, in the gradient too.
Neighbours: ``embedding_ops`` finds the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt.dtypes import int32
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.graph.shapes import merge
from mpirt.ops.apply import apply_op
from mpirt.ops.array_ops import expand_dims, rank, reshape, shape, zeros_like
from mpirt.ops.cast_ops import cast
from mpirt.ops.concat_ops import concat
from mpirt.ops.embedding_ops import embedding_lookup
from mpirt.ops.gather_ops import gather
from mpirt.ops.logic_ops import greater, greater_equal
from mpirt.ops.math_ops import div_no_nan
from mpirt.ops.partition_ops import unique
from mpirt.ops.reduction_ops import reduce_prod
from mpirt.ops.segment_ops import segment_sum
from mpirt.ops.select_ops import where_v2
from mpirt.ops.sparse_ops import sparse_fill_empty_rows, sparse_reshape, sparse_retain
from mpirt.ops.sparse_segment_ops import sparse_segment_mean, sparse_segment_sqrt_n, sparse_segment_sum
from mpirt.ops.sparse_tensor import SparseTensor
from mpirt.ops.unary_ops import sqrt, square

__all__ = ["embedding_lookup_sparse", "safe_embedding_lookup_sparse"]

_COMBINED = {"sum": sparse_segment_sum, "mean": sparse_segment_mean, "sqrtn": sparse_segment_sqrt_n}


def embedding_lookup_sparse(
    params: Any,
    sp_ids: Any,
    sp_weights: Any,
    partition_strategy: str = "mod",
    name: str | None = None,
    combiner: str | None = None,
    max_norm: Any = None,
    allow_fast_lookup: bool = False,
) -> Tensor:
    """For each example, a row of ``sp_ids``, the rows of a table that its ids name, combined to one.

    Parameters
    ----------
    params, partition_strategy, max_norm : as for ``embedding_lookup``
    sp_ids : SparseTensor of integers, shape [examples, any]; its elements in the order of examples
    sp_weights : SparseTensor of the same coordinates with a weight for each id, or None: all 1
    name : name scope of the operations
    combiner : "sum" of the rows times their weights; "mean" (also for None), which divides that by the sum of the weights;
        "sqrtn", by the root of the sum of their squares
    allow_fast_lookup : accepted; without effect

    Returns
    -------
    Tensor, shape [last example that has an id + 1, ...]; zeros for an example without ids

    Raises
    ------
    TypeError
        If ids or weights are no SparseTensor; ValueError for another combiner, or what ``embedding_lookup`` refuses.
    """
    combiner = _combiner(combiner)
    if not isinstance(sp_ids, SparseTensor):
        raise TypeError(f"sp_ids must be SparseTensor, got {type(sp_ids)}")
    if sp_weights is not None and not isinstance(sp_weights, SparseTensor):
        raise TypeError(f"sp_weights must be either None or SparseTensor, got {type(sp_weights)}")
    if sp_weights is not None:
        merge(sp_ids.values.static_shape, sp_weights.values.static_shape)
        merge(sp_ids.indices.static_shape, sp_weights.indices.static_shape)
    with get_default_graph().name_scope(name or "embedding_lookup_sparse"):
        examples = cast(sp_ids.indices[:, 0], int32)
        ids, positions = unique(sp_ids.values)
        rows = embedding_lookup(params, ids, partition_strategy, max_norm=max_norm)
        if sp_weights is None:
            return _COMBINED[combiner](rows, positions, examples)
        weights = cast(sp_weights.values, rows.dtype)
        inner = apply_op("Fill", expand_dims(rank(rows) - 1, 0), 1)
        weights = reshape(weights, concat([[-1], inner], 0))
        summed = segment_sum(gather(rows, positions) * weights, examples)
        if combiner == "sum":
            return summed
        by = segment_sum(weights, examples) if combiner == "mean" else sqrt(segment_sum(square(weights), examples))
        return div_no_nan(summed, by)


def _combiner(combiner: str | None) -> str:
    if combiner is None:
        return "mean"
    if combiner not in _COMBINED:
        raise ValueError(f"combiner must be one of 'mean', 'sqrtn' or 'sum', got {combiner}")
    return combiner


def safe_embedding_lookup_sparse(
    embedding_weights: Any,
    sparse_ids: Any,
    sparse_weights: Any = None,
    combiner: str | None = "mean",
    default_id: int | None = None,
    name: str | None = None,
    partition_strategy: str = "div",
    max_norm: Any = None,
    allow_fast_lookup: bool = False,
) -> Tensor:
    """As ``embedding_lookup_sparse``, for examples of any shape, of which some may have no ids or bad ones.

    Parameters
    ----------
    embedding_weights : the table: ``params`` of ``embedding_lookup_sparse``
    sparse_ids : SparseTensor of at least two dimensions; the ids of an example are along the last one. Negative ids are left
        out, and so are, unless they are summed, those with weights that aren't positive.
    sparse_weights : SparseTensor of the same coordinates, or None
    default_id : what an example without ids gets: the row of this id, or zeros
    combiner, name, partition_strategy, max_norm, allow_fast_lookup : as for ``embedding_lookup_sparse``

    Returns
    -------
    Tensor, shape ``sparse_ids.shape[:-1]`` and that of a row
    """
    combiner = _combiner(combiner)
    if embedding_weights is None or (isinstance(embedding_weights, list | tuple) and not embedding_weights):
        raise ValueError(f"Missing embedding_weights {embedding_weights}.")
    with get_default_graph().name_scope(name or "embedding_lookup"):
        whole = sparse_ids.dense_shape
        leading = whole[:-1]
        ids = sparse_reshape(sparse_ids, concat([reshape(reduce_prod(leading), [1]), whole[-1:]], 0))
        weights = None if sparse_weights is None else ids.with_values(sparse_weights.values)
        ids, weights = _retained(greater_equal(ids.values, 0), ids, weights)
        if weights is not None and combiner != "sum":
            ids, weights = _retained(greater(weights.values, 0), ids, weights)
        ids, empty = sparse_fill_empty_rows(ids, 0 if default_id is None else default_id)
        if weights is not None:
            weights, _ = sparse_fill_empty_rows(weights, np.ones((), weights.dtype.np_dtype))
        rows = embedding_lookup_sparse(embedding_weights, ids, weights, partition_strategy, None, combiner, max_norm)
        if default_id is None:
            inner = apply_op("Fill", expand_dims(rank(rows) - 1, 0), 1)
            rows = where_v2(reshape(empty, concat([[-1], inner], 0)), zeros_like(rows), rows)
        out = reshape(rows, concat([cast(leading, int32), shape(rows)[1:]], 0))
        known, row = sparse_ids.shape.dims_tuple, rows.static_shape
        if known is not None and row is not None:
            out.set_shape(known[:-1] + row[1:])
        return out


def _retained(keep: Tensor, ids: SparseTensor, weights: SparseTensor | None) -> tuple[SparseTensor, SparseTensor | None]:
    return sparse_retain(ids, keep), None if weights is None else sparse_retain(weights, keep)
