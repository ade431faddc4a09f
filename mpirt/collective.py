"""``mpirt.collective``: operations over tensors of many tasks. mpirt's own; TensorFlow 1 has no public names for them."""

from __future__ import annotations

from mpirt.ops.collective_ops import all_gather, all_reduce, broadcast, reduce_scatter

__all__ = ["all_gather", "all_reduce", "broadcast", "reduce_scatter"]
