"""Plain gradient descent."""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.apply import apply_op
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.train.optimizer import Optimizer

__all__ = ["GradientDescentOptimizer"]


class GradientDescentOptimizer(Optimizer):
    """``var -= learning_rate * gradient``.

    Parameters
    ----------
    learning_rate : number, tensor, or a function of no arguments that gives one
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations
    """

    def __init__(self, learning_rate: Any, use_locking: bool = False, name: str = "GradientDescent") -> None:
        super().__init__(use_locking, name)
        self._learning_rate = learning_rate
        self._lr: Any = None

    def _prepare(self) -> None:
        self._lr = self._hyper(self._learning_rate, "learning_rate")

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        return self._update("ApplyGradientDescent", var, (), self._as_type(self._lr, var), grad)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        step = apply_op("Mul", grad.values, self._as_type(self._lr, var), name="mul")
        scattered: Tensor = apply_op("ScatterSub", var, grad.indices, step, use_locking=self._use_locking)
        return scattered
