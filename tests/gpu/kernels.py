"""Which kernels for GPUs sessions have run: scripts/gpu-check says which never have."""

from __future__ import annotations

from typing import Any

import mpirt as tf
from tests import reference


def note_kernels(session: tf.Session, graph: Any) -> None:
    """Remember the operation types that ``session`` has run on a GPU."""
    placement = session.placement()
    for op in graph.get_operations():
        if "GPU" in placement.get(op.name, ""):
            reference.RAN.add(op.type)
