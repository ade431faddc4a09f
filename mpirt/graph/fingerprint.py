"""Digests of operations, by which ranks prove that they have built the same graph.

A digest covers what changes a plan or a result: name, type, device, inputs, control inputs and attributes (the bytes of
constants too), in an order that no hash seed or set can change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt.graph.function import Function
from mpirt.graph.graph import Operation


def fingerprint(operations: Sequence[Operation]) -> bytes:
    """Sha256 over all that the digests of ``operations`` cover, in order."""
    texts: list[str] = []
    attrs: dict[int, str] = {}  # texts of attributes, by their dict: many operations share one
    for op in operations:
        text = attrs.get(id(op.attrs))
        if text is None:
            text = attrs[id(op.attrs)] = _attrs_text(op)
        texts.append(_summary(op, text))
        if "value" in op.attrs:
            texts.append(hashlib.sha256(_content(op)).hexdigest())
    lengths = ",".join(map(str, map(len, texts)))  # so that no other texts come to the same when they are joined
    return hashlib.sha256("\n".join([*texts, lengths]).encode()).digest()


def digest(op: Operation) -> bytes:
    """Sha256 of one operation."""
    one = hashlib.sha256(summary(op).encode())
    one.update(_content(op))
    return one.digest()


def _content(op: Operation) -> bytes:
    """The bytes of a constant."""
    value = op.attrs.get("value")
    if not isinstance(value, np.ndarray):
        return b""
    return value.tobytes() if value.dtype != object else repr(value.tolist()).encode()


def function_digest(function: Function) -> bytes:
    """Sha256 of a body: its operations, and what goes in and comes out."""
    total = hashlib.sha256(fingerprint(function.graph.get_operations()))
    names = [t.name for t in function.inputs], [t.name for t in function.outputs], [op.name for op in function.control_outputs]
    total.update(repr(names).encode())
    return total.digest()


def summary(op: Operation) -> str:
    """One line that tells all but the content of constants: what two ranks compare when their graphs differ."""
    return _summary(op, _attrs_text(op))


def _summary(op: Operation, attrs: str) -> str:
    inputs = [f"{t.op.name}:{t.value_index}" for t in op.inputs]
    inputs += [f"^{c.name}" for c in op.control_inputs]
    device = f" on {op.device}" if op.device else ""
    return f"{op.name} = {op.type}({', '.join(inputs)}){{{attrs}}}{device}"


def _attrs_text(op: Operation) -> str:
    return ", ".join([f"{key}={_text(op.attrs[key])}" for key in sorted(op.attrs)])


def _text(value: Any) -> str:
    if isinstance(value, Function):
        return f"{value.name}<{function_digest(value).hex()[:16]}>"
    if isinstance(value, np.ndarray):
        if value.size <= 4:
            return f"{value.dtype}{value.tolist()}"
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)
