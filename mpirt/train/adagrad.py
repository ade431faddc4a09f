"""Adagrad: a step size for each weight that shrinks with the squared gradients it has seen."""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.train.optimizer import Optimizer

__all__ = ["AdagradOptimizer"]


class AdagradOptimizer(Optimizer):
    """``accumulator += gradient ** 2; variable -= learning_rate * gradient / sqrt(accumulator)``.

    Parameters
    ----------
    learning_rate : number, tensor, or a function of no arguments that gives one
    initial_accumulator_value : positive
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations and slots

    References
    ----------
    Duchi, Hazan & Singer, Adaptive subgradient methods, JMLR 12 (2011).
    """

    def __init__(
        self, learning_rate: Any, initial_accumulator_value: float = 0.1, use_locking: bool = False, name: str = "Adagrad"
    ) -> None:
        if initial_accumulator_value <= 0.0:
            raise ValueError(f"initial_accumulator_value must be positive: {initial_accumulator_value}")
        super().__init__(use_locking, name)
        self._learning_rate = learning_rate
        self._initial_accumulator_value = initial_accumulator_value
        self._lr: Any = None

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            self._constant_slot(var, self._initial_accumulator_value, "accumulator", self._name)

    def _prepare(self) -> None:
        self._lr = self._hyper(self._learning_rate, "learning_rate")

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        return self._update("ApplyAdagrad", var, ("accumulator",), self._as_type(self._lr, var), grad)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        lr = self._as_type(self._lr, var)
        return self._update("SparseApplyAdagrad", var, ("accumulator",), lr, grad.values, grad.indices)
