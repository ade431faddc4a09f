"""What the jobs tell of a run, each in the same words."""

from __future__ import annotations

from collections.abc import Mapping


def traffic_line(traffic: Mapping[str, int]) -> str:
    """What crosses ranks in each step; ``traffic`` is ``Session.traffic``."""
    messages, nbytes, shared = (traffic[part] for part in ("messages", "nbytes", "window_nbytes"))
    return f"traffic   {messages} messages of {nbytes:,} bytes, {shared:,} bytes in shared memory, between ranks in each step"
