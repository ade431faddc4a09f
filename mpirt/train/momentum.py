"""Gradient descent with momentum, plain or Nesterov's."""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.train.optimizer import Optimizer

__all__ = ["MomentumOptimizer"]


class MomentumOptimizer(Optimizer):
    """``accumulation = momentum * accumulation + gradient; variable -= learning_rate * accumulation``.

    Parameters
    ----------
    learning_rate, momentum : number, tensor, or a function of no arguments that gives one
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations and slots
    use_nesterov : look ahead: ``variable -= learning_rate * (gradient + momentum * accumulation)``

    References
    ----------
    Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.
    """

    def __init__(
        self, learning_rate: Any, momentum: Any, use_locking: bool = False, name: str = "Momentum", use_nesterov: bool = False
    ) -> None:
        super().__init__(use_locking, name)
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._use_nesterov = use_nesterov
        self._lr: Any = None
        self._m: Any = None

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            self._zeros_slot(var, "momentum", self._name)

    def _prepare(self) -> None:
        self._lr = self._hyper(self._learning_rate, "learning_rate")
        self._m = self._hyper(self._momentum, "momentum")

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        lr, momentum = self._as_type(self._lr, var), self._as_type(self._m, var)
        return self._update("ApplyMomentum", var, ("momentum",), lr, grad, momentum, use_nesterov=self._use_nesterov)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        rates = self._as_type(self._lr, var), self._as_type(self._m, var)
        slices = (rates[0], grad.values, grad.indices, rates[1])
        return self._update("SparseApplyMomentum", var, ("momentum",), *slices, use_nesterov=self._use_nesterov)
