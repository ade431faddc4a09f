"""Adam: steps from moving averages of the gradient and of its square, corrected for their start at zero."""

from __future__ import annotations

from typing import Any

from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.ops.apply import apply_op
from mpirt.ops.control_flow_ops import group
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.state_ops import assign, assign_sub
from mpirt.train.optimizer import Optimizer

__all__ = ["AdamOptimizer"]


class AdamOptimizer(Optimizer):
    """``variable -= lr_t * m / (sqrt(v) + epsilon)``, where m and v average the gradient and its square.

    ``lr_t = learning_rate * sqrt(1 - beta2 ** t) / (1 - beta1 ** t)`` in step t. A sparse gradient counts as zero in
    the rows it doesn't name: m and v decay there too, and the variable moves.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : number, tensor, or a function of no arguments that gives one
    use_locking : accepted for TensorFlow's sake; every update is atomic
    name : name of the operations and slots
    use_own_namescope_for_non_slot_vars : name the two powers of the betas after this optimizer

    References
    ----------
    Kingma & Ba, Adam: a method for stochastic optimization, ICLR 2015; epsilon is the "epsilon hat" before section 2.1.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        epsilon: Any = 1e-8,
        use_locking: bool = False,
        name: str = "Adam",
        use_own_namescope_for_non_slot_vars: bool = False,
    ) -> None:
        super().__init__(use_locking, name, use_own_namescope_for_non_slot_vars)
        self._lr = learning_rate
        self._beta1 = beta1
        self._beta2 = beta2
        self._epsilon = epsilon
        self._rates: tuple[Any, ...] = ()

    def _powers(self) -> tuple[Any, Any]:
        """The variables that hold ``beta1 ** t`` and ``beta2 ** t``."""
        graph = get_default_graph()
        return self._get_non_slot_variable("beta1_power", graph), self._get_non_slot_variable("beta2_power", graph)

    def _create_slots(self, var_list: list[Any]) -> None:
        # Beside the variable that comes first by name: the same on all workers, whatever order they list them in.
        first = min(var_list, key=lambda v: v.name)
        self._create_non_slot_variable(self._call_if_callable(self._beta1), "beta1_power", first)
        self._create_non_slot_variable(self._call_if_callable(self._beta2), "beta2_power", first)
        for var in var_list:
            self._zeros_slot(var, "m", self._name)
            self._zeros_slot(var, "v", self._name)

    def _prepare(self) -> None:
        self._rates = (
            self._hyper(self._lr, "learning_rate"),
            self._hyper(self._beta1, "beta1"),
            self._hyper(self._beta2, "beta2"),
            self._hyper(self._epsilon, "epsilon"),
        )

    def _apply_dense(self, grad: Tensor, var: Any) -> Operation | Tensor:
        powers = [self._as_type(p.value(), var) for p in self._powers()]
        rates = [self._as_type(rate, var) for rate in self._rates]
        return self._update("ApplyAdam", var, ("m", "v"), *powers, *rates, grad)

    def _apply_sparse(self, grad: IndexedSlices, var: Any) -> Operation | Tensor:
        graph = get_default_graph()
        power1, power2 = (self._as_type(p.value(), var) for p in self._powers())
        lr, beta1, beta2, epsilon = (self._as_type(rate, var) for rate in self._rates)
        lr = lr * apply_op("Sqrt", 1 - power2) / (1 - power1)
        m_t = self._decay_and_add(graph, self.get_slot(var, "m"), beta1, grad.indices, grad.values * (1 - beta1))
        v_t = self._decay_and_add(
            graph, self.get_slot(var, "v"), beta2, grad.indices, (grad.values * grad.values) * (1 - beta2)
        )
        step = lr * m_t / (apply_op("Sqrt", v_t) + epsilon)
        moved = assign_sub(var, step, self._use_locking)
        return group(moved, m_t, v_t)

    def _decay_and_add(self, graph: Graph, slot: Any, beta: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        """``slot = slot * beta``, then ``values`` added to its rows ``indices``; the new value of the slot."""
        decayed = assign(slot, slot.value() * beta, use_locking=self._use_locking)
        with graph.control_dependencies([decayed]):
            added: Tensor = apply_op("ScatterAdd", slot, indices, values, use_locking=self._use_locking)
        return added

    def _finish(self, update_ops: list[Operation | Tensor], name_scope: str) -> Operation:
        graph = get_default_graph()
        beta1_power, beta2_power = self._powers()
        _, beta1, beta2, _ = self._rates
        advanced = []
        with graph.control_dependencies(update_ops), graph.colocate_with(beta1_power):
            for power, beta in ((beta1_power, beta1), (beta2_power, beta2)):
                advanced.append(assign(power, power.value() * self._as_type(beta, power), use_locking=self._use_locking))
        return group(*update_ops, *advanced, name=name_scope)
