"""Operations with bodies: If and While, and what their gradients need. ``cond_ops`` and ``while_ops`` are their faces.

A kernel runs bodies on its own task (``KernelContext.run``). Inputs and outputs are in host memory; a body moves them to
a GPU itself. A variable that a body changes comes in as a handle (``_VariableHandle``), so that the operation is placed
with the variable. ``_RecordedWhile`` and ``_WhileGrad`` are our own types: a loop whose gradient is asked for keeps in a
list, turn by turn, the values inside its body that the gradient needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import ALL, DType, resource
from mpirt.dtypes import bool as bool_
from mpirt.graph.function import ARG, VARIABLE_HANDLE, FuncGraph, Function
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape
from mpirt.ops.apply import apply_op, constant, convert_to_tensor
from mpirt.ops.identity_ops import identity
from mpirt.ops.structure import Structure, flatten

__all__: list[str] = []


# ------------------------------------------------------------------------------------------------ arguments, variables


@register_op(ARG, outputs=["output: T"], attrs={"T": "type", "index": "int"}, stateful=True)
def _arg_shape(ctx: ShapeContext) -> list[Shape]:
    return [None]  # set by the body


@register_kernel(ARG)
def _arg(ctx: KernelContext) -> Any:
    raise errors.InvalidArgumentError(f"{ctx.op.name!r} is an argument of a body, but there is no body around it.", op=ctx.op)


no_gradient(ARG, reason="it has no inputs")


@register_op(VARIABLE_HANDLE, inputs=["ref: Ref(T)"], outputs=["handle: resource"], T=ALL)
def _variable_handle_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel(VARIABLE_HANDLE)
def _variable_handle(ctx: KernelContext, ref: Any) -> Any:
    return ref


no_gradient(VARIABLE_HANDLE, reason="what a body does to a variable is not a function of its value")


# ---------------------------------------------------------------------------------------------------------------- If

_IF: dict[str, Any] = {
    "Tin": "list(type)", "Tout": "list(type)", "then_branch": "func", "else_branch": "func", "output_shapes": ("list(shape)", []),
}  # fmt: skip


@register_op("If", inputs=["cond: Tcond", "input: Tin"], outputs=["output: Tout"], attrs=_IF, stateful=True, Tcond=ALL)
@register_op("StatelessIf", inputs=["cond: Tcond", "input: Tin"], outputs=["output: Tout"], attrs=_IF, Tcond=ALL)
def _if_shape(ctx: ShapeContext) -> list[Shape]:
    branches = ctx.attr("then_branch"), ctx.attr("else_branch")
    types = list(ctx.attr("Tout"))
    for branch in branches:
        _check_signature(branch, ctx.attr("Tin"), types)
    if ctx.attr("output_shapes"):
        return _declared_shapes(ctx, types)
    return [common_shape(a.static_shape, b.static_shape) for a, b in zip(branches[0].outputs, branches[1].outputs, strict=True)]


@register_kernel("If", "StatelessIf", host=("cond", "input", "output"))
def _if(ctx: KernelContext, cond: Any, *inputs: Any, then_branch: Function, else_branch: Function) -> list[Any]:
    return ctx.run(then_branch if _truth(cond) else else_branch, inputs)


def _truth(value: Any) -> bool:
    """As TensorFlow takes it: a scalar's own truth; of an array, whether it has elements."""
    return bool(value if np.ndim(value) == 0 else np.size(value))


def _check_signature(body: Function, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    takes, gives = [_passed_type(t) for t in body.inputs], [_passed_type(t) for t in body.outputs]
    if takes != list(inputs) or gives != list(outputs):
        raise ValueError(
            f"the body {body.name!r} takes {[t.name for t in takes]} and gives {[t.name for t in gives]}, but"
            f" {[t.name for t in inputs]} and {[t.name for t in outputs]} are needed"
        )


def _passed_type(tensor: Tensor) -> DType:
    """Type of what goes in or out for ``tensor`` of a body: a variable itself is passed as a handle."""
    return resource if tensor.dtype.is_ref and tensor.op.type == ARG else tensor.dtype.base_dtype


def _declared_shapes(ctx: ShapeContext, types: Sequence[Any]) -> list[Shape]:
    shapes: list[Shape] = list(ctx.attr("output_shapes"))
    if len(shapes) != len(types):
        raise ValueError(f"output_shapes has {len(shapes)} entries for {len(types)} outputs")
    return shapes


def common_shape(a: Shape, b: Shape) -> Shape:
    """What holds for arrays of either shape."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(x if x == y else None for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------------------- While

_WHILE: dict[str, Any] = {
    "T": "list(type)", "cond": "func", "body": "func", "output_shapes": ("list(shape)", []), "parallel_iterations": ("int", 10),
}  # fmt: skip


@register_op("While", inputs=["input: T"], outputs=["output: T"], attrs=_WHILE, stateful=True)
@register_op("StatelessWhile", inputs=["input: T"], outputs=["output: T"], attrs=_WHILE)
@register_op("_RecordedWhile", inputs=["input: T"], outputs=["output: T", "history: resource"], attrs=_WHILE)
def _while_shape(ctx: ShapeContext) -> list[Shape]:
    types, test, body = list(ctx.attr("T")), ctx.attr("cond"), ctx.attr("body")
    kept = body.outputs[len(types) :] if ctx.definition.name == "_RecordedWhile" else ()
    _check_signature(body, types, [*types, *map(_passed_type, kept)])
    _check_signature(test, types, [_passed_type(t) for t in test.outputs[:1]] or [bool_])
    history: list[Shape] = [()] * (ctx.num_outputs - len(types))
    if ctx.attr("output_shapes"):
        return _declared_shapes(ctx, types) + history
    return [None] * len(types) + history


@register_kernel("While", "StatelessWhile", host=("input", "output"))
def _while(ctx: KernelContext, *values: Any, cond: Function, body: Function) -> Sequence[Any]:
    state: Sequence[Any] = values
    while _truth(ctx.run(cond, state)[0]):
        state = ctx.run(body, state)
    return state


@register_kernel("_RecordedWhile", host=("input", "output", "history"))
def _recorded_while(ctx: KernelContext, *values: Any, cond: Function, body: Function) -> Sequence[Any]:
    state: Sequence[Any] = values
    history: list[Sequence[Any]] = []
    while _truth(ctx.run(cond, state)[0]):
        outputs = ctx.run(body, state)
        state = outputs[: len(values)]
        history.append(outputs[len(values) :])
    return [*state, history]


@register_op(
    "_WhileGrad",
    inputs=["history: resource", "grad: T", "input: Tin"],
    outputs=["output: T"],
    attrs={"T": "list(type)", "Tin": "list(type)", "body": "func", "saved": "list(int)", "output_shapes": ("list(shape)", [])},
)
def _while_grad_shape(ctx: ShapeContext) -> list[Shape]:
    return _declared_shapes(ctx, ctx.attr("T"))


@register_kernel("_WhileGrad", host=("history", "grad", "input", "output"))
def _while_grad(ctx: KernelContext, history: Any, *inputs: Any, T: Any, body: Function, saved: list[int]) -> Sequence[Any]:  # noqa: N803
    grads, constants = inputs[: len(T)], inputs[len(T) :]
    for turn in reversed(history):
        grads = tuple(ctx.run(body, [*grads, *(turn[i] for i in saved), *constants]))
    return grads


@register_gradient("_WhileGrad")
def _no_second_gradient(op: Operation, *grads: Any) -> list[Any]:
    raise LookupError(
        f"No gradient defined for operation {op.name!r} (op type: _WhileGrad): it is the gradient of a while_loop, which can't"
        " be differentiated a second time.\n  Mend: write the loop out, or leave the path out with stop_gradient."
    )


# A loop inside a branch that wasn't taken has no history.
@register_op("_NoHistory", outputs=["history: resource"])
def _no_history_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("_NoHistory", host=("history",))
def _no_history(ctx: KernelContext) -> Any:
    return []


no_gradient("_NoHistory", reason="it has no inputs")


# ------------------------------------------------------------------------------------------------------ making bodies


class Traced:
    """The user's function, called once to build a body."""

    def __init__(self, graph: FuncGraph, result: Any) -> None:
        self.graph = graph
        self.outputs: list[Tensor] = []
        self.controls: list[Operation] = []
        leaves, self.structure = flatten(result)
        with graph.as_default():
            for leaf in leaves:
                if isinstance(leaf, Operation):
                    if leaf.graph is graph:
                        self.controls.append(leaf)
                    else:
                        graph.outer_controls[graph.as_graph_element(leaf)] = None  # type: ignore[index]
                else:
                    self.outputs.append(as_output(graph, leaf))

    structure: Structure


def as_output(graph: FuncGraph, value: Any) -> Tensor:
    """The tensor of ``graph`` for a value that a body gives out; of a variable, its value then."""
    tensor = graph.capture(convert_to_tensor(value))
    return identity(tensor) if tensor.dtype.is_ref else tensor


def merged_inputs(graphs: Sequence[FuncGraph]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """What the bodies ``graphs`` of one operation capture together: its inputs, and for each body as many arguments."""
    changed = {t for graph in graphs for t in graph.changed_variables()}
    captured = list(dict.fromkeys(t for graph in graphs for t in graph.captures))
    for graph in graphs:
        graph.read_only([t for t in captured if t.dtype.is_ref and t not in changed])
    inputs = [apply_op(VARIABLE_HANDLE, t, name="handle") if t in changed else t for t in captured]
    return inputs, [[_argument(graph, t, i) for t, i in zip(captured, inputs, strict=True)] for graph in graphs]


def _argument(graph: FuncGraph, captured: Tensor, given: Tensor) -> Tensor:
    """The argument of ``graph`` for a captured tensor; a new one, that nothing uses, if only another body captures it."""
    known = graph.captures.get(captured)
    return graph.add_input(given.dtype.base_dtype, given.static_shape) if known is None else known


def make_if(
    pred: Tensor, graphs: Sequence[FuncGraph], outputs: Sequence[Sequence[Tensor]], controls: Sequence[Sequence[Operation]], name: str
) -> Operation:
    """The If of two built branches in the current graph; ``name`` as ``create_op`` takes it."""
    inputs, arguments = merged_inputs(graphs)
    branches = [g.finish(a, o, c) for g, a, o, c in zip(graphs, arguments, outputs, controls, strict=True)]
    attrs = {
        "then_branch": branches[0],
        "else_branch": branches[1],
        "Tin": [t.dtype.base_dtype for t in inputs],
        "Tout": [t.dtype.base_dtype for t in outputs[0]],
        "output_shapes": [common_shape(a.static_shape, b.static_shape) for a, b in zip(*outputs, strict=True)],
    }
    graph = get_default_graph()
    with graph.control_dependencies([op for g in graphs for op in g.outer_controls]):
        return graph.create_op("If" if any(b.stateful for b in branches) else "StatelessIf", [pred, *inputs], attrs, name)


def extend_if(op: Operation, branch: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Further outputs of the If ``op``: the values that ``tensors`` inside one branch have, if that is the one that runs.

    What was compiled before keeps the bodies it has.
    """
    other = "else_branch" if branch == "then_branch" else "then_branch"
    mine, theirs = op.attrs[branch], op.attrs[other]
    with mine.graph.as_default():
        values = [as_output(mine.graph, t) for t in tensors]
    with theirs.graph.as_default(), theirs.graph.control_dependencies(None), theirs.graph.name_scope("not_taken"):
        nothing = [_nothing(t) for t in values]
    op.set_attr(branch, mine.with_outputs(values))
    op.set_attr(other, theirs.with_outputs(nothing))
    op.set_attr("Tout", [*op.attrs["Tout"], *(t.dtype for t in values)])
    op.set_attr("output_shapes", [t.static_shape for t in op.outputs] + [None] * len(values))
    first = len(op.outputs)
    op.outputs += tuple(Tensor(op, first + i, t.dtype, None) for i, t in enumerate(values))
    return list(op.outputs[first:])


def _nothing(tensor: Tensor) -> Tensor:
    if tensor.dtype is resource:
        made: Tensor = apply_op("_NoHistory", name="history")
        return made
    return constant(np.full((), b"" if tensor.dtype.kind == "O" else 0, tensor.dtype.np_dtype), tensor.dtype)


def record_while(op: Operation, tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Have the loop ``op`` keep the values that ``tensors`` inside its body have in each turn.

    Returns
    -------
    The history, and the positions of ``tensors`` in each of its entries
    """
    body, count = op.attrs["body"], len(op.attrs["T"])
    kept = {t: i for i, t in enumerate(body.outputs[count:])}
    with body.graph.as_default():
        values = [as_output(body.graph, t) for t in tensors]
    new = list(dict.fromkeys(t for t in values if t not in kept))
    kept.update(zip(new, range(len(kept), len(kept) + len(new)), strict=True))
    op.set_attr("body", body.with_outputs(new))
    if op.type != "_RecordedWhile":
        op.retype("_RecordedWhile", [(resource, ())])
    return op.outputs[count], [kept[t] for t in values]
