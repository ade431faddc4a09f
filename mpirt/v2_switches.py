"""TensorFlow's switches between its versions 1 and 2, so that scripts may keep their calls: mpirt is always version 1.

Scripts that begin with ``import tensorflow.compat.v1 as tf`` go on with ``tf.disable_v2_behavior()``.
"""

from __future__ import annotations

__all__ = [
    "disable_eager_execution", "disable_resource_variables", "disable_v2_behavior", "enable_resource_variables",
    "executing_eagerly", "resource_variables_enabled",
]  # fmt: skip


def disable_v2_behavior() -> None:
    """Nothing to do: operations are added to a graph and run by a session."""


def disable_eager_execution() -> None:
    """Nothing to do: operations are added to a graph and run by a session."""


def executing_eagerly() -> bool:
    """False: operations are added to a graph and run by a session."""
    return False


def enable_resource_variables() -> None:
    """Nothing to do: snapshots of variables are consistent in any case."""


def disable_resource_variables() -> None:
    """Nothing to do: variables are references, and snapshots of them are consistent in any case."""


def resource_variables_enabled() -> bool:
    """False: variables are references."""
    return False
