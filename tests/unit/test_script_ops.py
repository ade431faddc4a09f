"""py_func: calls, tokens, results and the errors a user's function gives."""

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.graph.graph import Graph
from mpirt.graph.graph_def import import_graph_def
from mpirt.ops.script_ops import py_func
from tests.reference import Reference


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def run(tensor: Any, feeds: Any = None) -> Any:
    graph = tensor[0].graph if isinstance(tensor, list) else tensor.graph
    return Reference(graph).run(tensor, feeds)


def double(x: Any) -> Any:
    return x * 2


# -------------------------------------------------------------------------------------------------------------- calls


def test_the_function_gets_arrays_and_gives_arrays() -> None:
    x = tf.placeholder(tf.float32, [None])
    y = py_func(double, [x], tf.float32)
    assert (y.name, y.dtype, y.shape.dims, y.op.type) == ("PyFunc:0", tf.float32, None, "PyFunc")
    assert run(y, {x: [1.0, 2.0]}).tolist() == [2, 4]


def test_several_results_are_a_list_and_none_is_the_operation() -> None:
    called: list[float] = []
    two = py_func(lambda a, b: (a + b, a > b), [tf.constant([1, 5]), tf.constant([2, 3])], [tf.int32, tf.bool])
    assert [v.tolist() for v in run(two)] == [[3, 8], [False, True]]
    one = py_func(double, [tf.constant(2.0)], [tf.float32])
    assert isinstance(one, list) and float(run(one)[0]) == 4
    nothing = py_func(lambda x: called.append(float(x)), [tf.constant(3.0)], [])
    assert isinstance(nothing, tf.Operation)
    run(nothing)
    assert called == [3.0]


def test_python_values_become_arrays_of_the_declared_type() -> None:
    assert run(py_func(lambda: 1.5, [], tf.float64)).dtype == np.float64
    assert run(py_func(lambda: 3, [], tf.int64)) == 3
    assert run(py_func(lambda: [[1.0, 2.0]], [], [tf.float64])[0]).tolist() == [1, 2]
    assert run(py_func(lambda: "abc", [], tf.string)).item() == b"abc"
    assert run(py_func(lambda: np.array(["a", "bc"]), [], tf.string)).tolist() == [b"a", b"bc"]
    assert run(py_func(lambda s: s + b"!", [tf.constant("hi")], tf.string)).item() == b"hi!"


def test_a_stateless_function_is_another_type_of_operation() -> None:
    y = py_func(double, [tf.constant(1.0)], tf.float32, stateful=False, name="mine")
    assert (y.op.type, y.op.name, run(y)) == ("PyFuncStateless", "mine", 2)


def test_the_function_can_be_any_callable() -> None:
    class Adder:
        def __call__(self, x: Any) -> Any:
            return x + np.float32(1)

        def twice(self, x: Any) -> Any:
            return x * np.float32(2)

    x = tf.constant(3.0)
    half = functools.partial(np.multiply, np.float32(0.5))
    for function, expected in ((Adder(), 4), (Adder().twice, 6), (half, 1.5), (np.square, 9)):
        assert run(py_func(function, [x], tf.float32)) == expected
    with pytest.raises(ValueError, match="Expected func to be callable"):
        py_func(3, [x], tf.float32)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- safety


def test_the_function_cannot_change_its_input(graph: Graph) -> None:
    v = tf.Variable([1.0, 2.0])
    reference = Reference(graph)
    reference.run(v.initializer)

    def write(x: Any) -> Any:
        x[0] = 9
        return x

    with pytest.raises(errors.InvalidArgumentError, match="assignment destination is read-only"):
        reference.run(py_func(write, [v], tf.float32))
    assert reference.run(v).tolist() == [1, 2]


def test_an_array_that_the_function_keeps_is_copied() -> None:
    buffer = np.zeros(2)
    out = run(py_func(lambda: buffer, [], tf.float64))
    buffer += 1
    assert out.tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------------------- tokens


def build_once(function: Callable[..., Any]) -> tuple[str, str]:
    with Graph().as_default():
        with tf.name_scope("s"):
            a = py_func(function, [tf.constant(1.0)], tf.float32)
            b = py_func(function, [tf.constant(1.0)], tf.float32)
        return a.op.attrs["token"], b.op.attrs["token"]


def test_tokens_are_the_same_in_every_process_and_differ_within_a_graph() -> None:
    first, again = build_once(double), build_once(double)
    line = double.__code__.co_firstlineno
    assert first == again == (f"s/PyFunc:double:{line}", f"s/PyFunc_1:double:{line}")


def test_equal_names_in_two_graphs_call_each_graphs_own_function() -> None:
    made = []
    for factor in (2, 3):
        with Graph().as_default():
            made.append(py_func(lambda x, f=factor: x * np.float32(f), [tf.constant(1.0)], tf.float32))
    assert [t.op.attrs["token"] for t in made][0] == [t.op.attrs["token"] for t in made][1]
    assert [float(run(t)) for t in made] == [2, 3]


def test_an_imported_graph_finds_the_functions_of_this_process(graph: Graph) -> None:
    py_func(double, [tf.constant(4.0)], tf.float32, name="f")
    with Graph().as_default() as copy:
        import_graph_def(graph.as_graph_def(), name="")
        assert run(copy.get_tensor_by_name("f:0")) == 8


def test_a_token_without_a_function_on_this_rank_is_refused(graph: Graph) -> None:
    py_func(double, [tf.constant(4.0)], tf.float32, name="elsewhere")
    definition = graph.as_graph_def()
    for node in definition.node:
        if node.op == "PyFunc":
            node.attr["token"].s = b"pyfunc_0"
    with Graph().as_default() as copy:
        import_graph_def(definition, name="")
        with pytest.raises(errors.InvalidArgumentError, match="no function is registered for token 'pyfunc_0' on this rank"):
            run(copy.get_tensor_by_name("elsewhere:0"))


def test_functions_go_with_their_graph() -> None:
    class Data:
        pass

    def build() -> None:
        data = Data()
        with Graph().as_default():
            py_func(lambda: data, [], [])

    for _ in range(3):
        build()
    gc.collect()
    assert [o for o in gc.get_objects() if type(o) is Data] == []


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("x"), errors.UnknownError),
        (RuntimeError("x"), errors.UnknownError),
        (ValueError("x"), errors.InvalidArgumentError),
        (TypeError("x"), errors.InvalidArgumentError),
        (StopIteration("x"), errors.OutOfRangeError),
        (NotImplementedError("x"), errors.UnimplementedError),
        (MemoryError("x"), errors.ResourceExhaustedError),
    ],
)
def test_exceptions_become_the_errors_tensorflow_gives(error: Exception, expected: type[errors.OpError]) -> None:
    def fails(x: Any) -> Any:
        raise error

    y = py_func(fails, [tf.constant(1.0)], tf.float32)
    with pytest.raises(expected) as caught:
        run(y)
    text = str(caught.value)
    assert type(caught.value) is expected and caught.value.__cause__ is error and caught.value.op is y.op
    assert f"failed with {type(error).__name__}: " in text
    assert "in fails" in text and "raise error" in text and "ops/script_ops.py" not in text


def test_an_error_of_the_library_passes_as_it_is() -> None:
    def fails() -> Any:
        raise errors.DataLossError("bad file")

    with pytest.raises(errors.DataLossError, match="^bad file$"):
        run(py_func(fails, [], tf.float32))


@pytest.mark.parametrize(
    ("function", "types", "message"),
    [
        (lambda: (1.0, 2.0), tf.float64, r"returned 2 value\(s\), but Tout has 1: \['float64'\]"),
        (lambda: None, tf.float64, r"returned 0 value\(s\), but Tout has 1"),
        (lambda: 1.0, [], r"returned 1 value\(s\), but Tout has 0"),
        (lambda: 1.5, tf.float32, "value 0 of the Python function has type float64, but Tout says float32"),
        (lambda: 3, tf.int32, "value 0 of the Python function has type int64, but Tout says int32"),
        (lambda: (1.0, "a"), [tf.float64, tf.float64], "value 1 of the Python function has type string, but Tout says float64"),
        (lambda: object(), tf.float32, "value 0 of the Python function can't be a tensor"),
        (lambda: [[1.0, 2.0], [1.0]], [tf.float64, tf.float64], None),
        (lambda: ([[1.0, 2.0], [1.0]],), tf.float64, "value 0 of the Python function can't be a tensor"),
    ],
)
def test_results_that_are_not_what_was_declared_are_refused(function: Any, types: Any, message: str | None) -> None:
    y = py_func(function, [], types)
    if message is None:
        assert [v.shape for v in run(y)] == [(2,), (1,)]
        return
    with pytest.raises(errors.InvalidArgumentError, match=message):
        run(y)
