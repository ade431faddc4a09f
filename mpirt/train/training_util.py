"""The global step: the one variable that counts the training steps of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.graph import Graph, GraphKeys, get_default_graph
from mpirt.ops.init_ops import zeros_initializer
from mpirt.ops.variable_scope import get_variable

__all__ = ["assert_global_step", "create_global_step", "get_global_step", "get_or_create_global_step", "global_step"]


def global_step(sess: Any, global_step_tensor: Any) -> int:
    """Value of the global step in ``sess``."""
    return int(np.asarray(sess.run(global_step_tensor)))


def get_global_step(graph: Graph | None = None) -> Any:
    """The global step of ``graph``, or None: the item of GLOBAL_STEP, else the variable ``global_step``.

    Raises
    ------
    TypeError
        If it is no integer scalar.
    """
    graph = graph or get_default_graph()
    found = graph.get_collection(GraphKeys.GLOBAL_STEP)
    if len(found) > 1:
        raise ValueError(f"Multiple items found in collection {GraphKeys.GLOBAL_STEP}: {[v.name for v in found]}.")
    if found:
        step = found[0]
    else:
        try:
            step = graph.get_tensor_by_name("global_step:0")
        except KeyError:
            return None
    assert_global_step(step)
    return step


def create_global_step(graph: Graph | None = None) -> Any:
    """A new global step: an int64 variable that is not trained, in GLOBAL_VARIABLES and GLOBAL_STEP.

    Raises
    ------
    ValueError
        If the graph has one.
    """
    graph = graph or get_default_graph()
    if get_global_step(graph) is not None:
        raise ValueError('"global_step" already exists.')
    with graph.as_default(), graph.name_scope(None):
        return get_variable(
            GraphKeys.GLOBAL_STEP,
            shape=[],
            dtype=dtypes.int64,
            initializer=zeros_initializer(),
            trainable=False,
            collections=[GraphKeys.GLOBAL_VARIABLES, GraphKeys.GLOBAL_STEP],
        )


def get_or_create_global_step(graph: Graph | None = None) -> Any:
    """The global step of ``graph``, made if there is none."""
    graph = graph or get_default_graph()
    step = get_global_step(graph)
    return create_global_step(graph) if step is None else step


def assert_global_step(global_step_tensor: Any) -> None:
    """TypeError unless ``global_step_tensor`` is an integer scalar, a variable or a tensor."""
    if not hasattr(global_step_tensor, "dtype") or not hasattr(global_step_tensor, "shape"):
        raise TypeError(f'Existing "global_step" must be a Variable or Tensor: {global_step_tensor!r}.')
    if not global_step_tensor.dtype.base_dtype.is_integer:
        raise TypeError(f'Existing "global_step" does not have integer type: {global_step_tensor.dtype.base_dtype.name}')
    shape = global_step_tensor.shape
    if shape.ndims not in (0, None):
        raise TypeError(f'Existing "global_step" is not scalar: {shape}')
