"""Seeds: the graph's and an operation's own, and the pair of attributes that they make.

Guarantee: the pair depends on the graph seed, the op seed and how many random operations without a seed came before;
so equal scripts draw equal numbers on every rank, and adding other operations changes nothing.
"""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import get_default_graph

__all__ = ["get_seed", "set_random_seed"]

DEFAULT_GRAPH_SEED = 87654321  # TensorFlow's, for operations with a seed in a graph without one
_LIMIT = 2**31 - 1  # what an attribute of TensorFlow's kernels holds


def set_random_seed(seed: int | None) -> None:
    """Set the seed of the current graph; None takes it away.

    Operations made later, with or without a seed of their own, then draw the same numbers in every session. Without
    either seed an operation draws other numbers each time.
    """
    get_default_graph().seed = seed


def get_seed(op_seed: int | None) -> tuple[int | None, int | None]:
    """The attributes ``seed`` and ``seed2`` of a new operation; (None, None) if neither graph nor operation has a seed."""
    graph = get_default_graph()
    if graph.seed is None:
        if op_seed is None:
            return None, None
        pair = DEFAULT_GRAPH_SEED, op_seed
    elif op_seed is None:
        count = graph.ops_state.get(__name__, 0)
        graph.ops_state[__name__] = count + 1
        pair = graph.seed, count
    else:
        pair = graph.seed, op_seed
    seed, seed2 = (int(s) % _LIMIT for s in pair)
    return (0, _LIMIT) if (seed, seed2) == (0, 0) else (seed, seed2)  # (0, 0) would mean no seed


def seed_attrs(op_seed: int | None) -> dict[str, Any]:
    """The two attributes as ``apply_op`` takes them; zeros if there is no seed."""
    seed, seed2 = get_seed(op_seed)
    return {"seed": seed or 0, "seed2": seed2 or 0}
