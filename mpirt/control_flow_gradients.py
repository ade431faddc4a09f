"""Gradients of cond and while_loop.

A branch's gradient is a body that is built inside out: its own graph lies in the forward branch's, whose tensors it
captures. What it captures, the forward operation gives out in addition: an If by further outputs, a loop by its history.
Nothing is computed twice, so random numbers and effects inside bodies are those of the forward step. The gradient of a
cond is a cond and can be differentiated again; that of a loop is a loop backwards over the history, and can't.
Gradients of rows (IndexedSlices) become dense where they leave a body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpirt.gradients import gradients
from mpirt.graph.function import FuncGraph, Function
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import register_gradient
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.functional_ops import extend_if, make_if, record_while


@register_gradient("If", "StatelessIf")
def _if_grad(op: Operation, *grads: Any) -> list[Any]:
    """A cond of the branches' gradients, with the same predicate."""
    ys = [i for i, g in enumerate(grads) if g is not None and _is_differentiable(op.outputs[i])]
    xs = [i for i, t in enumerate(op.inputs[1:]) if _is_differentiable(t)]
    result: list[Any] = [None] * len(op.inputs)
    if not ys or not xs:
        return result
    incoming = [convert_to_tensor(grads[i]) for i in ys]
    built = []
    for key in ("then_branch", "else_branch"):
        branch: Function = op.attrs[key]
        body = FuncGraph(f"{branch.name}_grad", branch.graph)
        with body.as_default():
            arguments = [body.add_input(g.dtype, g.static_shape, "grad") for g in incoming]
            found = gradients([branch.outputs[i] for i in ys], [branch.inputs[i] for i in xs], grad_ys=arguments, name="gradients")
        built.append((key, branch, body, arguments, found))
    reached = [k for k in range(len(xs)) if any(found[k] is not None for *_, found in built)]
    outputs = []
    for key, branch, body, arguments, found in built:
        with body.as_default():
            outputs.append([_dense(found[k], branch.inputs[xs[k]]) for k in reached])
        _reparent(body, arguments, incoming, _outside_if(op, key, branch))
    grad_op = make_if(op.inputs[0], [b[2] for b in built], outputs, [[], []], "If")
    for k, tensor in zip(reached, grad_op.outputs, strict=True):
        result[1 + xs[k]] = tensor
    return result


def _is_differentiable(tensor: Tensor) -> bool:
    return tensor.dtype.base_dtype.kind in "fc"


def _dense(grad: Any, x: Tensor) -> Tensor:
    """A gradient as a tensor of the body that is open; zeros if there is none."""
    graph = get_default_graph()
    assert isinstance(graph, FuncGraph)
    zeros_or_grad: Tensor = apply_op("ZerosLike", x) if grad is None else convert_to_tensor(grad)
    return graph.capture(zeros_or_grad)


def _reparent(
    body: FuncGraph, arguments: Sequence[Tensor], incoming: Sequence[Tensor], outside: Callable[[Sequence[Tensor]], list[Tensor]]
) -> None:
    """Lay a gradient's body beside the forward operation: what it captured from the forward body comes from ``outside``."""
    inner = list(body.captures)
    sources = [*incoming, *outside(inner)]
    for i, tensor in enumerate(sources):
        if tensor in sources[:i]:  # an argument each
            sources[i] = apply_op("Identity", tensor)
    body.lay_into(get_default_graph(), zip(sources, [*arguments, *body.captures.values()], strict=True))


def _outside_if(op: Operation, key: str, branch: Function) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    def outside(tensors: Sequence[Tensor]) -> list[Tensor]:
        """Where, outside of the branch, the values of ``tensors`` inside it are."""
        known = {t: op.outputs[i] for i, t in enumerate(op.attrs[key].outputs)}
        known.update((t, op.inputs[1 + i]) for i, t in enumerate(branch.inputs))
        for tensor in tensors:
            captured = branch.graph.outer_tensor(tensor)
            if captured is not None and not tensor.dtype.is_ref:
                known.setdefault(tensor, captured)
        missing = [t for t in tensors if t not in known or t.dtype.is_ref]
        known.update(zip(missing, extend_if(op, key, missing) if missing else (), strict=True))
        return [known[t] for t in tensors]

    return outside


@register_gradient("While", "StatelessWhile", "_RecordedWhile")
def _while_grad(op: Operation, *grads: Any) -> list[Any]:
    """A loop backwards over the turns that the forward loop made."""
    body: Function = op.attrs["body"]
    count = len(op.attrs["T"])
    xs = [i for i in range(count) if _is_differentiable(op.inputs[i])]
    result: list[Any] = [None] * count
    if all(grads[i] is None for i in xs):
        return result
    incoming = [apply_op("ZerosLike", op.outputs[i]) if grads[i] is None else convert_to_tensor(grads[i]) for i in xs]
    graph = FuncGraph(f"{body.name}_grad", body.graph)
    with graph.as_default():
        arguments = [graph.add_input(t.dtype.base_dtype, body.inputs[i].static_shape, "grad") for i, t in zip(xs, incoming, strict=True)]
        found = gradients([body.outputs[i] for i in xs], [body.inputs[i] for i in xs], grad_ys=arguments, name="gradients")
        outputs = [_dense(g, body.inputs[i]) for g, i in zip(found, xs, strict=True)]
    unchanging = {t: op.inputs[i] for i, t in enumerate(body.inputs) if body.outputs[i] is t and not t.dtype.is_ref}
    for tensor in graph.captures:
        captured = body.graph.outer_tensor(tensor)
        if captured is not None and tensor not in body.inputs and not tensor.dtype.is_ref:
            unchanging[tensor] = captured
    fixed = [t for t in graph.captures if t in unchanging]
    turned = [t for t in graph.captures if t not in unchanging]
    graph.read_only(graph.captures)
    history, saved = record_while(op, turned)
    function = graph.finish([*arguments, *(graph.captures[t] for t in (*turned, *fixed))], outputs)
    grads_out = apply_op(
        "_WhileGrad", history, incoming, [unchanging[t] for t in fixed], name="While",
        body=function, saved=saved, output_shapes=[op.inputs[i].static_shape for i in xs],
    )  # fmt: skip
    for i, tensor in zip(xs, grads_out, strict=True):
        result[i] = tensor
    return result
