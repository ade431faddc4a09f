"""Print, and how values are shown in it and in failed assertions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt.dtypes import ALL
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape
from mpirt.ops.apply import apply_op

__all__ = ["Print"]


def Print(  # noqa: N802
    input_: Any,
    data: Sequence[Any],
    message: str | None = None,
    first_n: int | None = None,
    summarize: int | None = None,
    name: str | None = None,
) -> Tensor:
    """``input_`` itself; each time it is computed a line with ``data`` is written to stderr of its rank.

    Parameters
    ----------
    data : tensors to print
    message : text before them
    first_n : print only the first so many times, -1 (the default) always
    summarize : how many elements to show of each, 3 by default, -1 for all
    """
    attrs = {"message": message, "first_n": first_n, "summarize": summarize}
    given = {key: value for key, value in attrs.items() if value is not None}
    same: Tensor = apply_op("Print", input_, list(data), name=name, **given)
    return same


@register_op(
    "Print",
    inputs=["input: T", "data: U"],
    outputs=["output: T"],
    attrs={"U": "list(type)", "message": ("string", ""), "first_n": ("int", -1), "summarize": ("int", 3)},
    stateful=True,
    T=ALL,
)
def _print_shape(ctx: ShapeContext) -> list[Shape]:
    return [ctx.shape("input")]


class _Counter:
    """How often a Print op has printed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.count = 0


@register_kernel("Print", devices=("CPU",))
def _print(ctx: KernelContext, value: Any, *data: Any, message: str, first_n: int, summarize: int) -> Any:
    if first_n >= 0:
        counter = ctx.resource(_Counter)
        with counter.lock:
            counter.count += 1
            if counter.count > first_n:
                return value
    shown = "".join(f"[{summarize_value(item, summarize)}]" for item in data)
    sys.stderr.write(f"{message}{shown}\n")  # one write a line, so that lines of several ranks don't mix
    sys.stderr.flush()
    return value


@register_gradient("Print")
def _print_grad(op: Operation, dy: Any) -> list[Any]:
    return [dy] + [None] * (len(op.inputs) - 1)


def summarize_value(value: Any, limit: int = 3) -> str:
    """The first ``limit`` elements of an array (all if negative) as text: ``1 2.5``, ``[1 2][3...]...``.

    As TensorFlow writes it: brackets for each row below the first dimension, ``...`` for what is left out.
    """
    array = np.asarray(value)
    if not array.ndim or not array.size:
        return _element(array[()]) if array.size else ""
    if limit < 0 or limit > array.size:
        limit = array.size
    shown, _ = _rows(array, limit)
    return shown + ("..." if array.ndim > 1 and limit < array.size else "")


def _rows(array: np.ndarray[Any, Any], rest: int) -> tuple[str, int]:
    """Text of at most ``rest`` elements, and how many more may be shown."""
    if array.ndim == 1:
        shown = " ".join(_element(item) for item in array[:rest])
        return shown + ("..." if rest < len(array) else ""), max(rest - len(array), 0)
    parts = []
    for row in array:
        if not rest:
            break
        inside, rest = _rows(row, rest)
        parts.append(f"[{inside}]")
    return "".join(parts), rest


def _element(item: Any) -> str:
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    if isinstance(item, np.bool_):
        return str(int(item))
    return str(item).removesuffix(".0")
