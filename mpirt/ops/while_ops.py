"""while_loop: a body that runs again and again while a condition holds, on the task of its operation, without messages.

Condition and body are built once, as bodies of one While operation. What they use from outside is an input that stays the
same in all turns; a variable that one of them changes is passed as itself, so that each turn sees the turn before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpirt import dtypes
from mpirt.graph.function import FuncGraph
from mpirt.graph.graph import Tensor, get_default_graph
from mpirt.graph.shapes import Shape, TensorShape, as_shape, text
from mpirt.ops.apply import constant, convert_to_tensor
from mpirt.ops.functional_ops import Traced, merged_inputs
from mpirt.ops.identity_ops import identity
from mpirt.ops.logic_ops import less, logical_and
from mpirt.ops.structure import Structure, flatten, pack

__all__ = ["while_loop"]


def while_loop(
    cond: Callable[..., Any],
    body: Callable[..., Any],
    loop_vars: Any,
    shape_invariants: Any = None,
    parallel_iterations: int = 10,
    back_prop: bool = True,
    swap_memory: bool = False,
    name: str | None = None,
    maximum_iterations: Any = None,
    return_same_structure: bool = False,
) -> Any:
    """Replace ``loop_vars`` by ``body(*loop_vars)`` as long as ``cond(*loop_vars)`` is true.

    Parameters
    ----------
    cond : gets the loop variables, returns a scalar bool tensor; called once, now, to build it
    body : gets the loop variables, returns as many of the same structure and types; called once, now
    loop_vars : list or tuple of tensors, also nested
    shape_invariants : static shapes, in the structure of ``loop_vars``, of what changes its shape from turn to turn
    parallel_iterations, back_prop, swap_memory : accepted; turns run one after the other
    name : name of the operation
    maximum_iterations : scalar integer; the loop ends after so many turns in any case
    return_same_structure : False returns the only loop variable itself instead of a list of it

    Returns
    -------
    The structure of ``loop_vars`` with the values after the last turn

    Raises
    ------
    TypeError
        If cond or body are no functions, or a type changes; ValueError if the structure changes, a shape changes that
        ``shape_invariants`` doesn't allow to, or there are no loop variables.
    """
    if not callable(cond):
        raise TypeError("'cond' must be callable.")
    if not callable(body):
        raise TypeError("'body' must be callable.")
    if not isinstance(parallel_iterations, int) or parallel_iterations < 1:
        raise TypeError("'parallel_iterations' must be a positive integer.")
    leaves, structure = flatten(loop_vars)
    if not leaves:
        raise ValueError("'loop_vars' must be provided.")
    if not structure.parts:  # a tensor alone
        structure = Structure(list, (), (structure,))
    graph = get_default_graph()
    with graph.name_scope(name or "while") as scope:
        values = [convert_to_tensor(v, name=f"loop_var_{i}") for i, v in enumerate(leaves)]
        values = [identity(v) if v.dtype.is_ref else v for v in values]
        shapes = _invariants(values, shape_invariants)
        if maximum_iterations is not None:
            limit = convert_to_tensor(maximum_iterations, name="maximum_iterations")
            if not limit.dtype.base_dtype.is_integer or limit.static_shape not in (None, ()):
                raise TypeError(f"maximum_iterations must be a scalar integer, not {limit!r}.")
            turn = constant(0, limit.dtype.base_dtype, name="turn")
            values, shapes = [turn, *values], [(), *shapes]
        else:
            limit = None
        test = FuncGraph(f"{scope[:-1]}_cond", graph)
        with test.as_default():
            state = _arguments(test, values, shapes)
            tested = _test(cond, structure, state, limit)
        turns = FuncGraph(f"{scope[:-1]}_body", graph)
        with turns.as_default():
            inputs = _arguments(turns, values, shapes)
            own = inputs if limit is None else inputs[1:]
            result = Traced(turns, body(*pack(structure, own)))
            _check_structure(scope[:-1], structure, result)
            outputs = result.outputs if limit is None else [inputs[0] + constant(1, inputs[0].dtype), *result.outputs]
        _check_turn(inputs, outputs, values)
        captured, (test_args, turn_args) = merged_inputs([test, turns])
        functions = (
            test.finish([*state, *test_args], [tested]),
            turns.finish([*inputs, *turn_args], [*outputs, *turn_args], result.controls),
        )
        attrs = {
            "cond": functions[0],
            "body": functions[1],
            "T": [t.dtype.base_dtype for t in (*values, *captured)],
            "output_shapes": [*shapes, *(t.static_shape for t in captured)],
            "parallel_iterations": parallel_iterations,
        }
        with graph.control_dependencies([*test.outer_controls, *turns.outer_controls]):
            kind = "While" if any(f.stateful for f in functions) else "StatelessWhile"
            op = graph.create_op(kind, [*values, *captured], attrs, scope)
    first = 0 if limit is None else 1
    packed = pack(structure, op.outputs[first : len(values)])
    return packed[0] if len(leaves) == 1 and not return_same_structure and isinstance(packed, list | tuple) else packed


def _arguments(graph: FuncGraph, values: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
    return [graph.add_input(v.dtype.base_dtype, s, v.op.name) for v, s in zip(values, shapes, strict=True)]


def _test(cond: Callable[..., Any], structure: Structure, state: Sequence[Tensor], limit: Tensor | None) -> Tensor:
    """The condition's tensor, with the limit of turns."""
    own = state if limit is None else state[1:]
    result = cond(*pack(structure, own))
    if isinstance(result, list | tuple) and len(result) == 1:
        result = result[0]
    tensor = convert_to_tensor(result, name="cond")
    if tensor.dtype.base_dtype is not dtypes.bool:
        raise TypeError(f"'cond' must return a boolean tensor, not {tensor.dtype.name}: {tensor!r}")
    if tensor.static_shape not in (None, ()):
        raise ValueError(f"'cond' must return a scalar, not shape {text(tensor.static_shape)}: {tensor!r}")
    graph = get_default_graph()
    assert isinstance(graph, FuncGraph)
    tensor = graph.capture(tensor)
    return tensor if limit is None else logical_and(less(state[0], limit), tensor)


def _invariants(values: Sequence[Tensor], given: Any) -> list[Shape]:
    """The static shape that each loop variable keeps in all turns."""
    if given is None:
        return [v.static_shape for v in values]
    shapes = _shapes(given)
    if len(shapes) != len(values):
        raise ValueError(f"shape_invariants has {len(shapes)} shapes for {len(values)} loop variables.")
    for value, shape in zip(values, shapes, strict=True):
        if not _covers(shape, value.static_shape):
            raise ValueError(
                f"The shape invariant specified for {value.name} is not compatible with the initial shape of the loop variable."
                f" It enters the loop with shape {text(value.static_shape)}, but the specified shape invariant is {text(shape)}."
            )
    return shapes


def _shapes(given: Any) -> list[Shape]:
    if given is None or isinstance(given, TensorShape):
        return [as_shape(given)]
    if isinstance(given, dict):
        return [s for key in sorted(given) for s in _shapes(given[key])]
    if all(item is None or isinstance(item, int) for item in given) and len(given) and not all(item is None for item in given):
        return [as_shape(given)]
    return [s for item in given for s in _shapes(item)]


def _covers(general: Shape, special: Shape) -> bool:
    """Whether every array of shape ``special`` has the shape ``general``."""
    if general is None:
        return True
    if special is None or len(general) != len(special):
        return False
    return all(g is None or g == s for g, s in zip(general, special, strict=True))


def _check_structure(name: str, structure: Structure, result: Traced) -> None:
    given = result.structure
    if not isinstance(given.kind, type) or given.kind not in (list, tuple) and len(structure.parts) == 1:
        given = Structure(structure.kind, structure.keys, (given,))
    if given.parts != structure.parts:
        raise ValueError(
            f"the body of {name!r} must return the structure of its loop variables, {structure}; it returned {result.structure}."
        )


def _check_turn(inputs: Sequence[Tensor], outputs: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for argument, output, value in zip(inputs, outputs, values, strict=True):
        if output.dtype is not argument.dtype:
            raise TypeError(
                f"Loop variable {value.name} enters the loop with type {argument.dtype.name}, but has type {output.dtype.name}"
                f" after one iteration ({output.name}, made at {output.op.location})."
            )
        if not _covers(argument.static_shape, output.static_shape):
            raise ValueError(
                f"Input tensor {value.name!r} enters the loop with shape {text(argument.static_shape)}, but has shape"
                f" {text(output.static_shape)} after one iteration. To allow the shape to vary across iterations, use the"
                " `shape_invariants` argument of tf.while_loop to specify a less-specific shape."
            )
