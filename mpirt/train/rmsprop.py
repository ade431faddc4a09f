"""RMSProp: gradients divided by a moving average of their size, with optional momentum and centring."""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.train.optimizer import Optimizer

__all__ = ["RMSPropOptimizer"]


class RMSPropOptimizer(Optimizer):
    """Gradient descent with gradients scaled by ``1 / sqrt(mean_square + epsilon)``.

    ``mean_square`` decays by ``decay`` and starts at one; ``mom = momentum * mom + learning_rate * gradient / sqrt(...)``;
    ``variable -= mom``.

    Parameters
    ----------
    learning_rate, decay, momentum, epsilon : number, tensor, or a function of no arguments that gives one
    use_locking : accepted for TensorFlow's sake; every update is atomic
    centered : use the variance: ``mean_square - mean_gradient ** 2``
    name : name of the operations and slots

    References
    ----------
    Tieleman & Hinton, lecture 6.5 of Neural Networks for Machine Learning, 2012; centred: Graves, arXiv:1308.0850.
    """

    def __init__(
        self,
        learning_rate: Any,
        decay: Any = 0.9,
        momentum: Any = 0.0,
        epsilon: Any = 1e-10,
        use_locking: bool = False,
        centered: bool = False,
        name: str = "RMSProp",
    ) -> None:
        super().__init__(use_locking, name)
        self._learning_rate = learning_rate
        self._decay = decay
        self._momentum = momentum
        self._epsilon = epsilon
        self._centered = centered
        self._rates: tuple[Any, ...] = ()

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            self._constant_slot(var, 1.0, "rms", self._name)
            if self._centered:
                self._zeros_slot(var, "mg", self._name)
            self._zeros_slot(var, "momentum", self._name)

    def _prepare(self) -> None:
        self._rates = (
            self._hyper(self._learning_rate, "learning_rate"),
            self._hyper(self._decay, "decay"),
            self._hyper(self._momentum, "momentum"),
            self._hyper(self._epsilon, "epsilon"),
        )

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        return self._step("Apply", var, grad)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        return self._step("SparseApply", var, grad.values, grad.indices)

    def _step(self, prefix: str, var: Any, *grad: Tensor) -> Operation | Tensor:
        rates = [self._as_type(rate, var) for rate in self._rates]
        if self._centered:
            return self._update(f"{prefix}CenteredRMSProp", var, ("mg", "rms", "momentum"), *rates, *grad)
        return self._update(f"{prefix}RMSProp", var, ("rms", "momentum"), *rates, *grad)
