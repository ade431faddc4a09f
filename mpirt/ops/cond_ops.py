"""cond, case and switch_case: a choice between branches that is made in the step.

Both branches are built as bodies of one If operation, which runs one of them on its own task. What a branch uses from
outside is an input of the operation, so it is computed whichever branch runs, where it lives, as in TensorFlow. Inside the
branch that runs, everything that has an effect runs, once, and so does all that the results need; control dependencies hold.
A branch may change variables of the task on which the cond is; see ``graph.function`` for devices inside branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpirt import dtypes
from mpirt.graph.function import FuncGraph
from mpirt.graph.graph import get_default_graph
from mpirt.graph.shapes import text
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor
from mpirt.ops.cast_ops import cast
from mpirt.ops.concat_ops import stack
from mpirt.ops.control_flow_ops import Assert
from mpirt.ops.functional_ops import Traced, make_if
from mpirt.ops.logic_ops import equal, less_equal
from mpirt.ops.reduction_ops import reduce_any, reduce_sum
from mpirt.ops.structure import pack

__all__ = ["case", "cond", "switch_case"]

Branch = Callable[[], Any]


def cond(
    pred: Any,
    true_fn: Branch | None = None,
    false_fn: Branch | None = None,
    strict: bool = False,
    name: str | None = None,
    fn1: Branch | None = None,
    fn2: Branch | None = None,
) -> Any:
    """What ``true_fn`` gives if ``pred`` is true, else what ``false_fn`` gives; only that one is computed.

    Parameters
    ----------
    pred : scalar tensor of type bool
    true_fn, false_fn : functions without arguments; each is called once, now, to build its branch. They return the same
        structure (tensors, operations, None, nested in lists, tuples and dicts) with the same types.
    strict : False returns the only element of a list or tuple of one instead of the list
    name : name of the operation
    fn1, fn2 : older names of ``true_fn`` and ``false_fn``

    Returns
    -------
    The structure that the branches return; the If operation in place of an operation

    Raises
    ------
    TypeError
        If ``pred`` is a Python bool, a branch is no function, or the branches' structures differ.
    ValueError
        If ``pred`` is no scalar bool, or the branches' types differ.
    """
    true_fn = _alias("true_fn", true_fn, "fn1", fn1)
    false_fn = _alias("false_fn", false_fn, "fn2", fn2)
    if not callable(true_fn):
        raise TypeError("true_fn must be callable.")
    if not callable(false_fn):
        raise TypeError("false_fn must be callable.")
    if isinstance(pred, bool):
        raise TypeError("pred must not be a Python bool: use Python's `if`, or a tensor.")
    graph = get_default_graph()
    with graph.name_scope(name or "cond") as scope:
        test = convert_to_tensor(pred, name="pred")
        if test.dtype.base_dtype is not dtypes.bool or test.static_shape not in (None, ()):
            raise ValueError(f"pred must be a scalar bool tensor, not {test.dtype.name} of shape {text(test.static_shape)}: {test!r}")
        branches = [_trace(f"{scope[:-1]}_{kind}", fn, strict) for kind, fn in (("true", true_fn), ("false", false_fn))]
        _check_alike(scope[:-1], branches)
        op = make_if(test, [b.graph for b in branches], [b.outputs for b in branches], [b.controls for b in branches], scope)
    return pack(branches[0].structure, op.outputs, op)


def _alias(name: str, value: Any, old: str, old_value: Any) -> Any:
    if value is not None and old_value is not None:
        raise TypeError(f"cond(): {old} and {name} may not be set simultaneously.")
    return old_value if value is None else value


def _trace(name: str, function: Branch, strict: bool) -> Traced:
    body = FuncGraph(name, get_default_graph())
    with body.as_default():
        result = function()
    if not strict and isinstance(result, list | tuple) and len(result) == 1:
        result = result[0]
    return Traced(body, result)


def _check_alike(name: str, branches: Sequence[Traced]) -> None:
    first, second = branches
    if first.structure != second.structure:
        raise TypeError(
            f"true_fn and false_fn of {name!r} must return the same structure of tensors: true_fn returned"
            f" {first.structure}, false_fn {second.structure}."
        )
    for i, (a, b) in enumerate(zip(first.outputs, second.outputs, strict=True)):
        if a.dtype is not b.dtype:
            raise ValueError(
                f"true_fn and false_fn of {name!r} must return the same types: output {i} is {a.dtype.name} in true_fn"
                f" ({a.name}) and {b.dtype.name} in false_fn ({b.name})."
            )


# -------------------------------------------------------------------------------------------------------------- case


def case(
    pred_fn_pairs: Any, default: Branch | None = None, exclusive: bool = False, strict: bool = False, name: str = "case"
) -> Any:
    """What the function of the first true predicate gives.

    Parameters
    ----------
    pred_fn_pairs : list of (scalar bool tensor, function) pairs, or a dict of them
    default : function for the case that none is true; without it that is an error in the step
    exclusive : it is an error in the step if more than one is true
    strict, name : as in ``cond``

    Raises
    ------
    TypeError
        If it is no list of pairs of a predicate and a function; ValueError if it is empty.
        In the step InvalidArgumentError as said above.
    """
    pairs = list(pred_fn_pairs.items()) if isinstance(pred_fn_pairs, Mapping) else pred_fn_pairs
    if not isinstance(pairs, list | tuple):
        raise TypeError("'pred_fn_pairs' must be a list, tuple, or dict.")
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"Each entry in 'pred_fn_pairs' must be a 2-tuple. Received {pair!r}.")
        if not is_tensor(pair[0]) or convert_to_tensor(pair[0]).dtype.base_dtype is not dtypes.bool:
            raise TypeError(f"'pred' must be a tensor of type bool, not {pair[0]!r}.")
        if not callable(pair[1]):
            raise TypeError(f"'fn' for pred {pair[0]!r} must be callable.")
    if not pairs:
        raise ValueError("'pred_fn_pairs' must not be empty.")
    if default is not None and not callable(default):
        raise TypeError(f"'default' must be callable, not {default!r}.")
    graph = get_default_graph()
    with graph.name_scope(name or "case"):
        preds = [convert_to_tensor(p) for p, _ in pairs]
        checks = []
        stacked = stack(preds, name="preds")
        if exclusive:
            alone = less_equal(reduce_sum(cast(stacked, dtypes.int32)), 1)
            checks = [Assert(alone, ["more than one predicate is true although exclusive=True:", stacked], len(preds))]
        functions = [fn for _, fn in pairs]
        last = default
        if last is None:
            last = functions[-1]
            checks.append(Assert(reduce_any(stacked), ["no predicate is true and there is no default:", stacked], len(preds)))
            preds, functions = preds[:-1], functions[:-1]
        with graph.control_dependencies(checks):
            if not preds:
                return cond(apply_op("Identity", convert_to_tensor(pairs[0][0])), last, last, strict)
            return _chain(list(zip(preds, functions, strict=True)), last, strict)()


def _chain(pairs: Sequence[tuple[Any, Branch]], last: Branch, strict: bool) -> Branch:
    if not pairs:
        return last
    (pred, function), rest = pairs[0], _chain(pairs[1:], last, strict)
    return lambda: cond(pred, function, rest, strict)


# ------------------------------------------------------------------------------------------------------- switch_case


def switch_case(branch_index: Any, branch_fns: Any, default: Branch | None = None, name: str = "switch_case") -> Any:
    """What function number ``branch_index`` gives.

    Parameters
    ----------
    branch_index : int32 scalar tensor
    branch_fns : list of functions, or a dict or list of pairs that numbers them from 0
    default : function for any other number, by default the last one of ``branch_fns``
    name : name scope of the operations

    Raises
    ------
    TypeError
        If the index is no int32 tensor, something is no function, or the functions' results differ in structure.
    ValueError
        If there are no functions, or their numbers aren't 0, 1, ...

    Notes
    -----
    It is a chain of conds, one for each number.
    """
    functions = _numbered(branch_fns)
    if not is_tensor(branch_index):
        raise TypeError(f"'branch_index' must be a Tensor, got {type(branch_index)}")
    index = convert_to_tensor(branch_index)
    if index.dtype.base_dtype is not dtypes.int32 or index.static_shape not in (None, ()):
        raise TypeError(f"'branch_index' must be an int32 scalar, not {index!r}.")
    if default is None:
        default = functions.pop()
    if not callable(default):
        raise TypeError(f"'default' must be callable, not {default!r}.")
    with get_default_graph().name_scope(name or "switch_case"):
        if not functions:
            return cond(equal(index, index), default, default, strict=True)
        return _chain([(equal(index, number), fn) for number, fn in enumerate(functions)], default, strict=True)()


def _numbered(branch_fns: Any) -> list[Branch]:
    """The functions in the order of their numbers."""
    if not isinstance(branch_fns, list | tuple | Mapping):
        raise TypeError("'branch_fns' must be a list, tuple, or dict")
    pairs: list[Any] = list(branch_fns.items()) if isinstance(branch_fns, Mapping) else list(branch_fns)
    if not pairs:
        raise ValueError("Must provide at least one item in 'branch_fns'")
    if all(callable(fn) for fn in pairs):
        return pairs
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"Each entry in 'branch_fns' must be a 2-tuple. Received {pair!r}.")
        if not isinstance(pair[0], int):
            raise TypeError(f"key must be a Python `int`, got {type(pair[0])}")
        if not callable(pair[1]):
            raise TypeError(f"fn for key {pair[0]} must be callable, got {pair[1]!r}.")
    numbers = sorted(number for number, _ in pairs)
    if numbers != list(range(len(pairs))):
        found = ",".join(map(str, numbers))
        raise ValueError(f"branch indices (keys) must form contiguous range of [0 to {len(pairs)}) but found {{{found}}}")
    return [fn for _, fn in sorted(pairs, key=lambda pair: pair[0])]
