"""The graph that users build: names, scopes, collections, waits, places in their code. Expected names are TensorFlow 2.21's."""

from __future__ import annotations

import cProfile
import threading
from collections.abc import Iterator

import pytest

import mpirt as tf


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def names(graph: tf.Graph) -> list[str]:
    return [op.name for op in graph.get_operations()]


# ------------------------------------------------------------------------------------------------------ default graph


def test_the_graph_of_the_innermost_block_is_the_default_one(graph: tf.Graph) -> None:
    other = tf.Graph()
    with other.as_default() as inside:
        assert inside is other and tf.get_default_graph() is other
        x = tf.constant(1)
    assert tf.get_default_graph() is graph and x.graph is other and graph.version == 0


def test_blocks_of_one_thread_are_not_those_of_another(graph: tf.Graph) -> None:
    found: list[tf.Graph] = []
    thread = threading.Thread(target=lambda: found.append(tf.get_default_graph()))
    thread.start()
    thread.join()
    assert found[0] is not graph


def test_tensors_of_two_graphs_are_not_mixed(graph: tf.Graph) -> None:
    with tf.Graph().as_default():
        other = tf.constant(1)
    with pytest.raises(ValueError, match="is from another graph"):
        tf.constant(2) + other


def test_a_finalized_graph_refuses_operations(graph: tf.Graph) -> None:
    tf.constant(1)
    graph.finalize()
    with pytest.raises(RuntimeError, match="^Graph is finalized and cannot be modified.$"):
        tf.constant(2)
    assert graph.finalized and names(graph) == ["Const"]


def test_the_default_graph_is_not_reset_inside_a_block() -> None:
    with pytest.raises(AssertionError, match="reset_default_graph"):
        tf.reset_default_graph()


# -------------------------------------------------------------------------------------------------------------- names


def test_names_are_made_unique_inside_their_scopes(graph: tf.Graph) -> None:
    tf.constant(1, name="a")
    tf.constant(1, name="a")
    tf.constant(1, name="A")
    with tf.name_scope("s") as scope:
        assert scope == "s/"
        tf.constant(1, name="a")
        with tf.name_scope("t"):
            tf.no_op()
        with tf.name_scope(None):
            tf.no_op(name="top")
    with tf.name_scope("s"):
        tf.constant(1, name="a")
    with tf.name_scope(scope):
        tf.constant(1, name="a")
    with tf.name_scope(None, "default", [1]):
        tf.no_op("n")
    assert names(graph) == ["a", "a_1", "A_2", "s/a", "s/t/NoOp", "top", "s_1/a", "s/a_1", "default/n"]


def test_elements_are_found_by_name_and_by_object(graph: tf.Graph) -> None:
    v = tf.Variable(1.0, name="v")
    x = tf.constant(1, name="x")
    assert graph.get_tensor_by_name("x:0") is x and graph.get_operation_by_name("x") is x.op
    assert graph.as_graph_element("x:0") is x and graph.as_graph_element("x") is x.op and graph.as_graph_element(x.op) is x.op
    assert graph.as_graph_element(v).name == "v:0"
    for bad, error in (("x:1", KeyError), ("y:0", KeyError), ("y", KeyError)):
        with pytest.raises(error):
            graph.as_graph_element(bad)
    with pytest.raises(TypeError, match="Can not convert a int into a Tensor or an Operation"):
        graph.as_graph_element(3)


@pytest.mark.parametrize("name", ["_a", "-a", "a b", "a:0", "\u00e4"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid operation name"):
        tf.no_op(name=name)


# -------------------------------------------------------------------------------------------------------- collections


def test_collections_keep_order_and_are_filtered_by_the_beginning_of_names(graph: tf.Graph) -> None:
    a, b = tf.constant(1, name="model/a"), tf.constant(2, name="b/model")
    for item in (a, "text", b):
        tf.add_to_collection("mine", item)
    tf.add_to_collections(["mine", "yours"], a)
    assert tf.get_collection("mine") == [a, "text", b, a]
    assert tf.get_collection("mine", scope="model") == [a, a]
    assert tf.get_collection("mine", scope=".*model") == [a, b, a]
    tf.get_collection("mine").clear()  # a copy
    assert len(tf.get_collection("mine")) == 4
    tf.get_collection_ref("mine").clear()
    assert tf.get_collection("mine") == [] == tf.get_collection("never used")
    assert graph.get_all_collection_keys() == ["yours"]
    graph.clear_collection("yours")
    assert graph.get_all_collection_keys() == []


def test_variables_enter_the_collections_of_their_kind() -> None:
    with tf.variable_scope("one", regularizer=lambda w: tf.reduce_sum(w, name="penalty")):
        w = tf.get_variable("w", [2])
        step = tf.get_variable("step", [], trainable=False, regularizer=tf.no_regularizer)
    local = tf.get_local_variable("local", [1])
    assert tf.global_variables() == [w, step] and tf.trainable_variables() == [w] and tf.local_variables() == [local]
    (penalty,) = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
    assert penalty.shape.ndims == 0
    assert tf.trainable_variables("one") == [w] and tf.trainable_variables("two") == []


# ---------------------------------------------------------------------------------------- waits, places, what it costs


def test_operations_wait_for_what_the_open_blocks_name(graph: tf.Graph) -> None:
    a, b = tf.no_op("a"), tf.constant(1, name="b")
    with tf.control_dependencies([a]), tf.control_dependencies([b, a]):
        both = tf.no_op("both")
        with tf.control_dependencies(None):
            free = tf.no_op("free")
        first = tf.constant(2, name="first")
        after = tf.identity(first, name="after")  # has waited by its input
    assert [[c.name for c in op.control_inputs] for op in (both, free, first.op, after.op)] == [["a", "b"], [], ["a", "b"], []]


def test_blocks_do_not_close_in_the_wrong_order(graph: tf.Graph) -> None:
    outer, inner = graph.device("/cpu:0"), graph.device("/cpu:1")
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="without proper scope nesting"):
        outer.__exit__(None, None, None)


def test_colocation_names_its_groups_and_may_forget_them(graph: tf.Graph) -> None:
    with tf.device("/job:ps"):
        a, b = tf.constant(1, name="a"), tf.constant(1, name="b")
    with tf.colocate_with(a):
        with tf.colocate_with(b):
            both = tf.no_op()
        with tf.colocate_with(b, ignore_existing=True):
            only_b = tf.no_op()
        with tf.colocate_with(None, ignore_existing=True):
            nowhere = tf.no_op()
    assert [(op.colocation_groups(), op.device) for op in (both, only_b)] == [
        ([b"loc:@a", b"loc:@b"], "/job:ps"),
        ([b"loc:@b"], "/job:ps"),
    ]
    assert nowhere.device == "" and "_class" not in nowhere.attrs
    with pytest.raises(ValueError, match="ignore_existing"):
        tf.colocate_with(None).__enter__()


def test_an_operation_remembers_the_users_line() -> None:
    def build() -> tf.Tensor:
        return tf.nn.relu(tf.constant([1.0]))  # the line

    op = build().op
    file, _, line = op.location.partition(",")[0].rpartition(":")
    assert file.endswith("test_graph.py")
    with open(__file__) as text:
        assert text.read().splitlines()[int(line) - 1].endswith("# the line")


def test_each_operation_has_its_own_line_and_callers() -> None:
    def build() -> tf.Operation:
        return tf.no_op()

    def call_twice() -> list[tf.Operation]:
        return [build(), build()]  # two calls in one line

    ops = call_twice()
    ops.append(build())
    ops.append(build())
    lines = [[line for file, line in op.traceback if file == __file__] for op in ops]
    assert lines[0][:2] == lines[1][:2] and lines[0][0] == lines[2][0] and lines[0][1] != lines[2][1]
    assert lines[3][1] == lines[2][1] + 1
    again = [op for _ in range(3) for op in call_twice()]
    assert len({op.traceback for op in again}) == 1, "a loop gives all its operations the same place"
    namespace: dict[str, object] = {"tf": tf}
    places = []
    for number in range(50):  # code that is gone leaves its address to other code
        exec(compile("\n" * number + "op = tf.no_op()", f"made{number}.py", "exec"), namespace)
        op = namespace["op"]
        assert isinstance(op, tf.Operation)
        places.append(op.location)
    assert places == [f"made{number}.py:{number + 1}" for number in range(50)]


def test_what_one_operation_is_given_its_equals_do_not_get(graph: tf.Graph) -> None:
    x = tf.constant([1.0])
    plain = tf.negative(x).op
    with graph.attr_scope({"_mark": b"m"}):
        marked = tf.negative(x).op
    with tf.colocate_with(x):
        beside = tf.negative(x).op
    with graph.gradient_override_map({"Neg": "Other"}):
        overridden = tf.negative(x).op
    changed = tf.negative(x).op
    changed.set_attr("_mine", 1)
    found = [sorted(op.attrs) for op in (plain, marked, beside, overridden, changed, tf.negative(x).op)]
    assert found == [["T"], ["T", "_mark"], ["T", "_class"], ["T", "_gradient_op_type"], ["T", "_mine"], ["T"]]


def test_types_are_checked_for_every_operation(graph: tf.Graph) -> None:
    for dtype in (tf.float32, tf.int64, tf.float32):
        x = tf.constant([1], dtype)
        assert graph.create_op("AddV2", (x, x)).get_attr("T") is dtype
    for _ in range(2):  # what was refused once isn't taken for known
        with pytest.raises(TypeError, match="can't take T = mpirt.string"):
            graph.create_op("AddV2", (tf.constant("a"), tf.constant("b")))
        with pytest.raises(TypeError, match="has type int64, but float32 is needed"):
            graph.create_op("AddV2", (tf.constant(1.0), tf.constant(1, tf.int64)))
        with pytest.raises(TypeError, match="lacks its input 'y'"):
            graph.create_op("AddV2", (tf.constant(1.0),))


def test_building_an_operation_costs_the_same_in_a_small_graph_and_in_a_large_one() -> None:
    def calls(count: int) -> int:
        """Python calls that building ``count`` operations takes; the time is measured in scripts/bench."""
        profile = cProfile.Profile()
        with tf.Graph().as_default():
            y = x = tf.constant(1.0)
            tf.add(x, x)
            profile.enable()
            for _ in range(count):
                y = tf.add(y, x)
            profile.disable()
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(2_000) <= 2 * calls(1_000) + 10


def test_a_graph_def_gives_the_same_operations_with_devices_waits_and_groups(graph: tf.Graph) -> None:
    with tf.device("/job:ps/task:1"):
        v = tf.Variable([1.0, 2.0], name="v")
    with tf.device("/job:worker/gpu:0"), tf.control_dependencies([v.initializer]):
        tf.identity(v[1:] * 2.0, name="y")
    message = graph.as_graph_def()
    with tf.Graph().as_default() as again:
        tf.import_graph_def(message, name="")
    assert again.as_graph_def().SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    assert again.get_operation_by_name("y").device == "/job:worker/device:GPU:0"
