"""Digests of operations, by which ranks prove that they have built the same graph.

A digest covers what changes a plan or a result: name, type, device, inputs, control inputs and attributes (the bytes of
constants too), in an order that no hash seed or set can change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from mpirt.graph.function import Function
from mpirt.graph.graph import Operation


def fingerprint(operations: Iterable[Operation]) -> bytes:
    """Sha256 over the digests of ``operations``, in order."""
    total = hashlib.sha256()
    for op in operations:
        total.update(digest(op))
    return total.digest()


def digest(op: Operation) -> bytes:
    """Sha256 of one operation."""
    one = hashlib.sha256(summary(op).encode())
    value = op.attrs.get("value")
    if isinstance(value, np.ndarray):
        content = value if value.dtype != object else np.frombuffer(repr(value.tolist()).encode(), np.uint8)
        one.update(np.ascontiguousarray(content).tobytes())
    return one.digest()


def function_digest(function: Function) -> bytes:
    """Sha256 of a body: its operations, and what goes in and comes out."""
    total = hashlib.sha256(fingerprint(function.graph.get_operations()))
    names = [t.name for t in function.inputs], [t.name for t in function.outputs], [op.name for op in function.control_outputs]
    total.update(repr(names).encode())
    return total.digest()


def summary(op: Operation) -> str:
    """One line that tells all but the content of constants: what two ranks compare when their graphs differ."""
    inputs = [t.name for t in op.inputs] + [f"^{c.name}" for c in op.control_inputs]
    attrs = ", ".join(f"{key}={_text(op.attrs[key])}" for key in sorted(op.attrs))
    device = f" on {op.device}" if op.device else ""
    return f"{op.name} = {op.type}({', '.join(inputs)}){{{attrs}}}{device}"


def _text(value: Any) -> str:
    if isinstance(value, Function):
        return f"{value.name}<{function_digest(value).hex()[:16]}>"
    if isinstance(value, np.ndarray):
        if value.size <= 4:
            return f"{value.dtype}{value.tolist()}"
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)
