"""A golden case: one small graph, what to run on it, in which order, and how it was fed.

A case is a function ``build(tf, b)`` that uses only names of tensorflow.compat.v1. ``tf`` is TensorFlow when the answers are
made and mpirt when they are checked, so the same text tests the public functions, the gradients and, through the exported
GraphDef, the import. Op types without a public function go through ``b.raw``; such cases are checked by import alone.

Owns: the registry of cases and the recorder ``Builder``. Does not own: running (make_tf_golden.py, test_tf_golden.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Build = Callable[[Any, "Builder"], None]


def words(text: str) -> list[str]:
    """The names in ``text``: long lists of names read better without quotes."""
    return text.split()


@dataclass
class Run:
    """One ``session.run``: what is fed, which ops run, which tensors are fetched, and the error that must come, if any."""

    feeds: dict[Any, Any]
    targets: list[Any]
    fetch: list[Any]
    error: str = ""
    init: bool = False


@dataclass
class Case:
    name: str
    build: Build
    dynamic: bool
    functional: bool = False


CASES: dict[str, Case] = {}


def case(function: Build | None = None, *, dynamic: bool = False, functional: bool = False) -> Any:
    """Register a case.

    With ``dynamic`` a second one is made, ``<name>_dyn``, whose placeholders know only their ndim. With ``functional``
    TensorFlow exports cond and while_loop as If and While with bodies, as it does since version 2.
    """

    def register(build: Build) -> Build:
        name = build.__name__
        assert name not in CASES, name
        CASES[name] = Case(name, build, False, functional)
        if dynamic:
            CASES[name + "_dyn"] = Case(name + "_dyn", build, True, functional)
        return build

    return register if function is None else register(function)


@dataclass
class Builder:
    """Collects what a case feeds and runs.

    Attributes
    ----------
    inspect : whether every intermediate tensor that changes no state is recorded too, after the first ``init`` run
    scale : factor on the tolerances
    """

    tf: Any
    case: Case
    feeds: dict[Any, Any] = field(default_factory=dict)
    outs: list[Any] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    inspect: bool = True
    scale: float = 1.0
    uses_raw: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.RandomState(zlib.crc32(self.case.name.removesuffix("_dyn").encode()) & 0x7FFFFFFF)

    def normal(self, *shape: int, dtype: Any = np.float32) -> Any:
        """Normal numbers, the same for a case's name whatever else is there."""
        return np.round(self.rng.standard_normal(shape), 3).astype(dtype)

    def ph(self, value: Any, name: str | None = None, shape: Any = ..., dtype: Any = None) -> Any:
        """A placeholder fed with ``value``; its static shape is the value's, or only its ndim in a dynamic case."""
        array = np.asarray(value) if dtype is None else np.asarray(value, dtype)
        kind = self.tf.string if array.dtype.kind in "SUO" else self.tf.as_dtype(array.dtype)
        if shape is ...:
            shape = [None] * array.ndim if self.case.dynamic else array.shape
        placeholder = self.tf.placeholder(kind, shape, name=name)
        self.feeds[placeholder] = array
        return placeholder

    def feed(self, tensor: Any, value: Any) -> Any:
        """Feed a tensor that isn't a placeholder."""
        self.feeds[tensor] = np.asarray(value)
        return tensor

    def out(self, *tensors: Any) -> None:
        """These tensors are the answer of the case."""
        for t in tensors:
            if isinstance(t, (list, tuple)) and not hasattr(t, "dtype"):
                self.out(*t)
            else:
                assert t is not None, f"{self.case.name}: None among the outputs"
                self.outs.append(t)

    def grad(self, ys: Any, xs: Any) -> None:
        """Gradients of ``ys`` weighted by unequal constants, so that a transposed or swapped gradient can't pass."""
        tf = self.tf
        ys = ys if isinstance(ys, (list, tuple)) else [ys]
        xs = xs if isinstance(xs, (list, tuple)) else [xs]
        grad_ys = []
        with tf.Session() as session:
            for value in session.run(list(ys), self.feeds):
                weights = np.round(self.rng.uniform(0.5, 2.0, np.shape(value)), 2).astype(value.dtype)
                grad_ys.append(self.ph(weights))
        grads = tf.gradients(list(ys), list(xs), grad_ys=grad_ys)
        self.out(list(ys), [tf.convert_to_tensor(g) for g in grads if g is not None])
        assert any(g is not None for g in grads), self.case.name

    def raw(self, op_type: str, **args: Any) -> Any:
        """An op by its type; TensorFlow only, mpirt gets it by import."""
        self.uses_raw = True
        return getattr(self.tf.raw_ops, op_type)(**args)

    def run(
        self, fetch: Any = (), targets: Any = (), feeds: dict[Any, Any] | None = None, error: str = "", init: bool = False
    ) -> None:
        """Add a step; with ``init`` intermediates are recorded after it."""
        self.runs.append(
            Run(
                dict(self.feeds if feeds is None else feeds),
                list(targets) if isinstance(targets, (list, tuple)) else [targets],
                list(fetch) if isinstance(fetch, (list, tuple)) else [fetch],
                error,
                init,
            )
        )

    def finish(self) -> list[Run]:
        """The steps; a case that asked for none runs its outputs once."""
        if self.outs:
            self.run(fetch=self.outs)
        return self.runs


def build(tf: Any, case: Case) -> tuple[Any, Builder, list[Run]]:
    """A fresh graph with the case in it, its recorder and its steps."""
    graph = tf.Graph()
    with graph.as_default():
        builder = Builder(tf, case)
        case.build(tf, builder)
        runs = builder.finish()
    return graph, builder, runs
