"""FTRL-Proximal: follow the leader of all gradients so far, with weights that become exactly 0 under l1."""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.train.optimizer import Optimizer

__all__ = ["FtrlOptimizer"]


class FtrlOptimizer(Optimizer):
    """The usual choice for sparse linear models.

    Parameters
    ----------
    learning_rate : number, tensor, or a function of no arguments that gives one
    learning_rate_power : how the rate falls with ``accum``, the sum of squared gradients; not positive, 0 for a fixed rate
    initial_accumulator_value : where ``accum`` starts; not negative
    l1_regularization_strength, l2_regularization_strength : not negative
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations and slots
    accum_name, linear_name : names of the slots, by default ``name``
    l2_shrinkage_regularization_strength : not negative; a pull to 0 that follows the weights' size, which is added to the
        gradient, while l2 only steadies the leader
    beta : added to the root that the rate is divided by, as in the paper; TensorFlow's default is 0

    References
    ----------
    McMahan et al., Ad click prediction: a view from the trenches, KDD 2013.
    """

    def __init__(
        self,
        learning_rate: Any,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        use_locking: bool = False,
        name: str = "Ftrl",
        accum_name: str | None = None,
        linear_name: str | None = None,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float | None = None,
    ) -> None:
        super().__init__(use_locking, name)
        for what, value in {
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
        }.items():
            if value < 0.0:
                raise ValueError(f"{what} {value} needs to be positive or zero")
        if learning_rate_power > 0.0:
            raise ValueError(f"learning_rate_power {learning_rate_power} needs to be negative or zero")
        self._learning_rate = learning_rate
        self._learning_rate_power = learning_rate_power
        self._initial_accumulator_value = initial_accumulator_value
        self._l1 = l1_regularization_strength
        self._l2 = l2_regularization_strength
        self._accum_name = accum_name or name
        self._linear_name = linear_name or name
        self._shrinkage = l2_shrinkage_regularization_strength
        self._beta = beta or 0.0
        self._rates: list[Any] = []

    def _create_slots(self, var_list: list[Any]) -> None:
        for var in var_list:
            self._constant_slot(var, self._initial_accumulator_value, "accum", self._accum_name)
            self._zeros_slot(var, "linear", self._linear_name)

    def _prepare(self) -> None:
        rate = self._hyper(self._learning_rate, "learning_rate")
        l2 = self._hyper(self._l2, "l2_regularization_strength")
        self._rates = [rate, self._hyper(self._l1, "l1_regularization_strength")]
        self._rates.append(l2 + self._beta / (2.0 * rate) if self._beta else l2)
        if self._shrinkage:
            self._rates.append(self._hyper(self._shrinkage, "l2_shrinkage_regularization_strength"))
        self._rates.append(self._hyper(self._learning_rate_power, "learning_rate_power"))

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        return self._step("Apply", var, grad)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        return self._step("SparseApply", var, grad.values, grad.indices)

    def _step(self, prefix: str, var: Any, *grad: Tensor) -> Operation | Tensor:
        rates = [self._as_type(rate, var) for rate in self._rates]
        return self._update(f"{prefix}{'FtrlV2' if self._shrinkage else 'Ftrl'}", var, ("accum", "linear"), *grad, *rates)
