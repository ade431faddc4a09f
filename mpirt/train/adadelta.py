"""Adadelta: steps in the unit of the weights, from moving averages of squared gradients and squared steps."""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.train.optimizer import Optimizer

__all__ = ["AdadeltaOptimizer"]


class AdadeltaOptimizer(Optimizer):
    """``variable -= learning_rate * rms(steps) / rms(gradients) * gradient``.

    Parameters
    ----------
    learning_rate, rho, epsilon : number, tensor, or a function of no arguments that gives one; rho is the decay of both
        averages, epsilon is added under both roots; the paper's learning rate is 1
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations and slots

    References
    ----------
    Zeiler, ADADELTA: an adaptive learning rate method, arXiv:1212.5701.
    """

    def __init__(
        self, learning_rate: Any = 0.001, rho: Any = 0.95, epsilon: Any = 1e-8, use_locking: bool = False, name: str = "Adadelta"
    ) -> None:
        super().__init__(use_locking, name)
        self._learning_rate = learning_rate
        self._rho = rho
        self._epsilon = epsilon
        self._rates: tuple[Any, ...] = ()

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            self._zeros_slot(var, "accum", self._name)
            self._zeros_slot(var, "accum_update", self._name)

    def _prepare(self) -> None:
        hyper = {"lr": self._learning_rate, "rho": self._rho, "epsilon": self._epsilon}
        self._rates = tuple(self._hyper(value, name) for name, value in hyper.items())

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        return self._step("ApplyAdadelta", var, grad)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        return self._step("SparseApplyAdadelta", var, grad.values, grad.indices)

    def _step(self, op_type: str, var: Any, *grad: Tensor) -> Operation | Tensor:
        rates = [self._as_type(rate, var) for rate in self._rates]
        return self._update(op_type, var, ("accum", "accum_update"), *rates, *grad)
