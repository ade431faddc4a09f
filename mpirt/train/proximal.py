"""Optimizers that regularize by a proximal step: l1 makes weights exactly 0, which a gradient of ``|w|`` never does.

Background: Duchi & Singer, Efficient online and batch learning using forward backward splitting, JMLR 10 (2009).
"""

from __future__ import annotations

from typing import Any

from mpirt.dtypes import int64
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.ops.cast_ops import cast
from mpirt.ops.identity_ops import identity
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.train.optimizer import Optimizer

__all__ = ["AdagradDAOptimizer", "ProximalAdagradOptimizer", "ProximalGradientDescentOptimizer"]


class _Proximal(Optimizer):
    """What these optimizers share: a rate and two strengths, in front of or behind the gradient."""

    def __init__(self, learning_rate: Any, l1: Any, l2: Any, use_locking: bool, name: str) -> None:
        super().__init__(use_locking, name)
        self._learning_rate = learning_rate
        self._l1 = l1
        self._l2 = l2
        self._rates: list[Any] = []

    def _prepare(self) -> None:
        hyper = {
            "learning_rate": self._learning_rate, "l1_regularization_strength": self._l1, "l2_regularization_strength": self._l2,
        }  # fmt: skip
        self._rates = [self._hyper(value, name) for name, value in hyper.items()]

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        return self._step("Apply", var, grad)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        return self._step("SparseApply", var, grad.values, grad.indices)

    def _step(self, prefix: str, var: Any, *grad: Tensor) -> Operation | Tensor:
        raise NotImplementedError

    def _typed(self, var: Any) -> list[Tensor]:
        return [self._as_type(rate, var) for rate in self._rates]


class ProximalGradientDescentOptimizer(_Proximal):
    """Gradient descent, then the minimum of ``l1 |w| + l2/2 w ** 2`` and the squared way from where that led.

    Parameters
    ----------
    learning_rate, l1_regularization_strength, l2_regularization_strength : number, tensor, or a function of no arguments that
        gives one
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations
    """

    def __init__(
        self,
        learning_rate: Any,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        use_locking: bool = False,
        name: str = "ProximalGradientDescent",
    ) -> None:
        super().__init__(learning_rate, l1_regularization_strength, l2_regularization_strength, use_locking, name)

    def _step(self, prefix: str, var: Any, *grad: Tensor) -> Operation | Tensor:
        return self._update(f"{prefix}ProximalGradientDescent", var, (), *self._typed(var), *grad)


class ProximalAdagradOptimizer(_Proximal):
    """Adagrad with the proximal step of ``ProximalGradientDescentOptimizer``.

    Parameters
    ----------
    initial_accumulator_value : where the sum of squared gradients starts; positive
    learning_rate, l1_regularization_strength, l2_regularization_strength, use_locking, name :
        as for ``ProximalGradientDescentOptimizer``
    """

    def __init__(
        self,
        learning_rate: Any,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        use_locking: bool = False,
        name: str = "ProximalAdagrad",
    ) -> None:
        if initial_accumulator_value <= 0.0:
            raise ValueError(f"initial_accumulator_value must be positive: {initial_accumulator_value}")
        super().__init__(learning_rate, l1_regularization_strength, l2_regularization_strength, use_locking, name)
        self._initial_accumulator_value = initial_accumulator_value

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            self._constant_slot(var, self._initial_accumulator_value, "accumulator", self._name)

    def _step(self, prefix: str, var: Any, *grad: Tensor) -> Operation | Tensor:
        return self._update(f"{prefix}ProximalAdagrad", var, ("accumulator",), *self._typed(var), *grad)


class AdagradDAOptimizer(_Proximal):
    """Adagrad by dual averaging: weights follow from the sum of all gradients, not from the weights before.

    Parameters
    ----------
    learning_rate : as for ``ProximalGradientDescentOptimizer``
    global_step : the variable that counts the steps, which scale l1 and l2
    initial_gradient_squared_accumulator_value : where the sum of squared gradients starts; positive
    l1_regularization_strength, l2_regularization_strength, use_locking, name : as for ``ProximalGradientDescentOptimizer``

    References
    ----------
    Duchi, Hazan & Singer, Adaptive subgradient methods, JMLR 12 (2011), section 3.
    """

    def __init__(
        self,
        learning_rate: Any,
        global_step: Any,
        initial_gradient_squared_accumulator_value: float = 0.1,
        l1_regularization_strength: Any = 0.0,
        l2_regularization_strength: Any = 0.0,
        use_locking: bool = False,
        name: str = "AdagradDA",
    ) -> None:
        if initial_gradient_squared_accumulator_value <= 0.0:
            raise ValueError(
                f"initial_gradient_squared_accumulator_value must be positive: {initial_gradient_squared_accumulator_value}"
            )
        super().__init__(learning_rate, l1_regularization_strength, l2_regularization_strength, use_locking, name)
        self._global_step = global_step
        self._initial_squares = initial_gradient_squared_accumulator_value

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            self._zeros_slot(var, "gradient_accumulator", self._name)
            self._constant_slot(var, self._initial_squares, "gradient_squared_accumulator", self._name)

    def _step(self, prefix: str, var: Any, *grad: Tensor) -> Operation | Tensor:
        with get_default_graph().colocate_with(grad[0], ignore_existing=True):
            step = cast(identity(self._global_step), int64) + 1
        slots = ("gradient_accumulator", "gradient_squared_accumulator")
        return self._update(f"{prefix}AdagradDA", var, slots, *grad, *self._typed(var), step)
