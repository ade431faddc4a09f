"""Partitioners, and the variables that get_variable makes with them. Expected names, devices and cuts are TensorFlow 2.21's."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops.partitioned_variables import PartitionedVariable, PartitionInfo
from tests.reference import Reference

cut = tf.fixed_size_partitioner
TABLE = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def started(graph: Graph) -> Reference:
    """All variables at their initial values."""
    reference = Reference(graph)
    reference.run(tf.global_variables_initializer())
    return reference


def shapes(variable: Any) -> list[tuple[int, ...]]:
    return [tuple(v.shape.as_list()) for v in variable]


# ------------------------------------------------------------------------------------------------------ partitioners


@pytest.mark.parametrize(
    ("partitioner", "shape", "dtype", "expected"),
    [
        (cut(3), [10, 4], tf.float32, [3, 1]),
        (cut(3, axis=1), [10, 4], tf.float32, [1, 3]),
        (cut(3), [2, 4], tf.float32, [2, 1]),  # not more than rows
        (cut(3), [0, 4], tf.float32, [1, 1]),
        (tf.min_max_variable_partitioner(8, min_slice_size=16 << 10), [1000, 16], tf.float32, [4, 1]),
        (tf.min_max_variable_partitioner(3, min_slice_size=16 << 10), [1000, 16], tf.float32, [3, 1]),
        (tf.min_max_variable_partitioner(100, min_slice_size=1), [7, 5], tf.float32, [7, 1]),
        (tf.min_max_variable_partitioner(100), [7, 5], tf.float32, [1, 1]),
        (tf.min_max_variable_partitioner(9, axis=1, min_slice_size=64), [4, 8], tf.string, [1, 8]),
        (tf.min_max_variable_partitioner(9, min_slice_size=64, bytes_per_string_element=4), [32], tf.string, [2]),
        (tf.variable_axis_size_partitioner(10_000), [1000, 16], tf.float32, [7, 1]),
        (tf.variable_axis_size_partitioner(10_000, max_shards=5), [1000, 16], tf.float32, [5, 1]),
        (tf.variable_axis_size_partitioner(1), [10, 4], tf.float64, [10, 1]),  # a row is the smallest slice
        (tf.variable_axis_size_partitioner(40, axis=-1), [10, 4], tf.float32, [1, 4]),
        (tf.variable_axis_size_partitioner(100), [100], tf.string, [17]),
    ],
)
def test_partitioners_cut_one_dimension(partitioner: Any, shape: list[int], dtype: Any, expected: list[int]) -> None:
    assert partitioner(shape=tf.TensorShape(shape), dtype=dtype) == expected


@given(
    rows=st.integers(1, 200),
    columns=st.integers(1, 20),
    limit=st.integers(1, 4000),
)
def test_by_size_slices_hold_as_many_rows_as_fit_and_at_least_one(rows: int, columns: int, limit: int) -> None:
    (count, one) = tf.variable_axis_size_partitioner(limit)(tf.TensorShape([rows, columns]), tf.float64)
    largest = -(-rows // count)
    assert one == 1 and 1 <= count <= rows
    assert largest == 1 or largest * columns * 8 <= limit
    assert count == 1 or -(-rows // (count - 1)) * columns * 8 > limit, "one slice fewer would do"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cut(0), "num_shards must be positive, not 0"),
        (lambda: tf.min_max_variable_partitioner(0), "max_partitions and min_slice_size must be positive, not 0 and 262144"),
        (lambda: tf.variable_axis_size_partitioner(0), "max_shard_bytes and bytes_per_string_element must be positive, not 0 and 16"),
        (lambda: tf.variable_axis_size_partitioner(8, max_shards=0), "max_shards must be positive, not 0"),
        (lambda: cut(2)(tf.TensorShape([None, 3])), r"needs a fully defined shape, not \(\?, 3\)"),
        (lambda: cut(2, axis=2)(tf.TensorShape([4, 3])), r"shape \(4, 3\) along axis 2: it has 2 dimension\(s\)"),
    ],
)
def test_a_partitioner_refuses_what_it_cannot_cut(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------- the slices


def test_slices_are_variables_of_consecutive_rows_and_the_first_have_one_more(graph: Graph) -> None:
    with tf.variable_scope("s"):
        p = tf.get_variable("p", [10, 3], partitioner=cut(4))
    assert isinstance(p, PartitionedVariable)
    assert (p.name, p.shape.as_list(), p.get_shape().as_list(), p.dtype, len(p)) == ("s/p", [10, 3], [10, 3], tf.float32, 4)
    assert [v.name for v in p] == ["s/p/part_0:0", "s/p/part_1:0", "s/p/part_2:0", "s/p/part_3:0"]
    assert shapes(p) == [(3, 3), (3, 3), (2, 3), (2, 3)]
    assert tf.global_variables() == tf.trainable_variables() == list(p)
    assert repr(p) == "<mpirt.PartitionedVariable 's/p' shape=(10, 3) dtype=float32 slices=4>"
    infos = [info for info in (v._get_save_slice_info() for v in p) if info is not None]
    assert [info.spec for info in infos] == ["10 3 0,3:0,3", "10 3 3,3:0,3", "10 3 6,2:0,3", "10 3 8,2:0,3"]
    assert {info.full_name for info in infos} == {"s/p"}


def test_columns_can_be_cut_too(graph: Graph) -> None:
    p = tf.get_variable("p", initializer=TABLE, partitioner=cut(2, axis=1))
    assert shapes(p) == [(10, 2), (10, 1)]
    session = started(graph)
    assert np.array_equal(session.run(tf.convert_to_tensor(p)), TABLE)
    session.run(p.assign(-TABLE))
    assert np.array_equal(session.run(tf.convert_to_tensor(p)), -TABLE)


def test_a_device_setter_spreads_the_slices_and_the_whole_is_put_together_on_the_worker(graph: Graph) -> None:
    with tf.device(tf.train.replica_device_setter(ps_tasks=3)):
        p = tf.get_variable("p", [10, 3], partitioner=cut(4))
        after = tf.get_variable("after", [1])
        whole = tf.convert_to_tensor(p)
    assert [v.device for v in p] == [f"/job:ps/task:{task}" for task in (0, 1, 2, 0)]
    assert after.device == "/job:ps/task:1"
    assert (whole.name, whole.op.type, whole.device) == ("p:0", "Identity", "/job:worker")
    joined = whole.op.inputs[0].op
    assert (joined.name, joined.type, joined.device) == ("p/ConcatPartitions/concat", "ConcatV2", "/job:worker")
    assert [t.name for t in joined.inputs[:4]] == [f"p/part_{k}/read:0" for k in range(4)]
    for v in p:
        initializers = [op for op in graph.get_operations() if op.name.startswith(f"{v.op.name}/Initializer/")]
        assert initializers and all(op.colocated_with() == [v.op.name] for op in initializers)


def test_as_a_tensor_it_is_the_slices_behind_one_another(graph: Graph) -> None:
    p = tf.get_variable("p", initializer=TABLE, partitioner=cut(4))
    total = tf.reduce_sum(tf.matmul(p, tf.ones([3, 1])))
    shifted = tf.ones([3]) + p
    session = started(graph)
    assert np.array_equal(session.run(p.as_tensor()), TABLE)
    assert session.run(total) == TABLE.sum()
    assert np.array_equal(session.run(shifted), TABLE + 1)
    one = tf.get_variable("one", initializer=TABLE, partitioner=cut(1))
    assert [v.name for v in one] == ["one/part_0:0"]
    assert np.array_equal(started(graph).run(one.as_tensor()), TABLE)


@pytest.mark.parametrize("how", ["whole array", "whole tensor", "a part for each slice"])
@pytest.mark.parametrize("change", ["assign", "assign_add", "assign_sub"])
def test_all_slices_change_together(graph: Graph, change: str, how: str) -> None:
    p = tf.get_variable("p", initializer=TABLE, partitioner=cut(4))
    delta = np.float32(10) * TABLE + 1
    value = {
        "whole array": delta,
        "whole tensor": tf.constant(delta),
        "a part for each slice": [tf.constant(part) for part in np.array_split(delta, 4)],
    }[how]
    changed = getattr(p, change)(value)
    session = started(graph)
    expected = {"assign": delta, "assign_add": TABLE + delta, "assign_sub": TABLE - delta}[change]
    assert np.array_equal(np.concatenate(session.run(changed)), expected)
    assert np.array_equal(session.run(p.as_tensor()), expected)
    assert [op.type for op in p.assign(value, read_value=False)] == ["Assign"] * 4


def test_operations_of_several_tensors_take_it_as_any_of_them(graph: Graph) -> None:
    p = tf.get_variable("p", initializer=TABLE, partitioner=cut(4))
    eye = np.eye(10, dtype=np.float32)
    made = [tf.matmul(eye, p), tf.matmul(p, TABLE.T), tf.gather(p, [2]), tf.concat([p, p], 0), tf.maximum(0.0, p), TABLE * p.as_tensor()]
    expected = [TABLE, TABLE @ TABLE.T, TABLE[[2]], np.concatenate([TABLE, TABLE]), np.maximum(0, TABLE), TABLE * TABLE]
    for value, answer in zip(started(graph).run(made), expected, strict=True):
        np.testing.assert_allclose(value, answer)


def test_parts_that_are_too_few_are_refused() -> None:
    p = tf.get_variable("p", [10, 3], partitioner=cut(4))
    with pytest.raises(ValueError, match="takes 4 parts, one for each slice, not 2"):
        p.assign([tf.ones([3, 3]), tf.ones([3, 3])])


def test_it_is_no_single_variable() -> None:
    p = tf.get_variable("p", [4, 3], partitioner=cut(2))
    with pytest.raises(TypeError, match=r"is no single variable. Mend: name its slices, list\(variable\)"):
        tf.gradients(tf.reduce_sum(p), p)
    with pytest.raises(TypeError, match="Can not convert a PartitionedVariable into a Tensor or an Operation"):
        p.graph.as_graph_element(p)


# ---------------------------------------------------------------------------------------------------- initial values


@pytest.mark.parametrize("shape", [None, [10, 3]])
@pytest.mark.parametrize("how", ["array", "list", "tensor", "function"])
def test_a_whole_initial_value_is_cut(graph: Graph, how: str, shape: Any) -> None:
    initializer: Any = {
        "array": TABLE,
        "list": TABLE.tolist(),
        "tensor": tf.constant(TABLE),
        "function": lambda: tf.constant(TABLE),
    }[how]
    p = tf.get_variable("p", shape, initializer=initializer, partitioner=cut(4))
    found = started(graph).run([*p, tf.convert_to_tensor(p)])
    for part, expected in zip(found, [*np.array_split(TABLE, 4), TABLE], strict=True):
        assert np.array_equal(part, expected)


def test_slices_of_a_random_function_are_of_one_value(graph: Graph) -> None:
    drawn = []

    def draw() -> Any:
        drawn.append(tf.random_normal([6, 2], seed=3))
        return drawn[-1]

    p = tf.get_variable("p", initializer=draw, partitioner=cut(3))
    assert len(drawn) == 1 and {t.op.inputs[0] for t in (v.initial_value for v in p)} == set(drawn)


def test_initializers_that_ask_for_it_are_told_which_slice_they_make() -> None:
    seen: list[tuple[Any, Any]] = []

    def initializer(shape: Any, dtype: Any, partition_info: PartitionInfo) -> Any:
        seen.append((list(shape), partition_info))
        assert partition_info.single_slice_dim(shape) == 0
        assert partition_info.single_offset(shape) == partition_info.var_offset[0]
        return tf.zeros(shape, dtype)

    tf.get_variable("p", [5, 2], initializer=initializer, partitioner=cut(2))
    assert seen == [([3, 2], PartitionInfo([5, 2], [0, 0])), ([2, 2], PartitionInfo([5, 2], [3, 0]))]
    whole = PartitionInfo([5, 2], [0, 0])
    assert (whole.single_slice_dim([5, 2]), whole.single_offset([5, 2])) == (None, 0)
    with pytest.raises(ValueError, match=r"cut from \[5, 2\] in several dimensions: \[0, 1\]"):
        whole.single_slice_dim([3, 1])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("initializer", "whole"),
    [
        (tf.zeros_initializer(), np.zeros((5, 5))),
        (tf.ones_initializer, np.ones((5, 5))),
        (tf.constant_initializer(7.0), np.full((5, 5), 7.0)),
        (tf.constant_initializer(np.arange(25.0).reshape(5, 5)), np.arange(25.0).reshape(5, 5)),
        (tf.constant_initializer([1.0, 2.0, 3.0]), np.array([1.0, 2.0, *[3.0] * 23]).reshape(5, 5)),
        (tf.initializers.identity(2.0), 2 * np.eye(5)),
    ],
)
def test_initializers_give_the_slices_of_what_they_give_for_the_whole(graph: Graph, initializer: Any, whole: Any, axis: int) -> None:
    p = tf.get_variable("p", [5, 5], initializer=initializer, partitioner=cut(3, axis))
    assert np.array_equal(started(graph).run(tf.convert_to_tensor(p)), whole)


def test_initializers_that_scale_with_the_shape_use_that_of_the_whole(graph: Graph) -> None:
    p = tf.get_variable("p", [3000, 3], initializer=tf.variance_scaling_initializer(distribution="uniform"), partitioner=cut(100))
    limit = np.sqrt(3.0 / 3000)  # of a slice's own 30 rows it would be ten times that
    found = started(graph).run(tf.convert_to_tensor(p))
    assert 0.99 * limit < np.abs(found).max() <= limit


def test_each_slice_brings_its_own_regularization_loss_beside_it(graph: Graph) -> None:
    with tf.device(tf.train.replica_device_setter(ps_tasks=2)):
        p = tf.get_variable("p", initializer=TABLE, partitioner=cut(2), regularizer=tf.nn.l2_loss)
    losses = tf.losses.get_regularization_losses()
    assert [loss.op.colocated_with() for loss in losses] == [[v.op.name] for v in p]
    assert sum(started(graph).run(losses)) == (TABLE**2).sum() / 2


# ------------------------------------------------------------------------------------------------- scopes and sharing


def test_a_scopes_partitioner_holds_inside_until_it_is_set_otherwise() -> None:
    with tf.variable_scope("a", partitioner=cut(2)) as scope:
        assert len(tf.get_variable("x", [4])) == 2
        with tf.variable_scope("b"):
            assert len(tf.get_variable("x", [4])) == 2
            assert len(tf.get_variable("y", [4], partitioner=cut(4))) == 4
        scope.set_partitioner(None)
        assert isinstance(tf.get_variable("z", [4]), tf.Variable)
    assert tf.get_variable_scope().partitioner is None


def test_scalars_are_not_cut() -> None:
    with tf.variable_scope("", partitioner=cut(2), reuse=tf.AUTO_REUSE):
        made = [tf.get_variable("s", []), tf.get_variable("t", initializer=1.0), tf.get_variable("u", initializer=tf.constant(1.0))]
        again = [tf.get_variable("s", []), tf.get_variable("t", initializer=1.0), tf.get_variable("u", initializer=tf.constant(1.0))]
    assert [v.name for v in made] == ["s:0", "t:0", "u:0"] and made == again


def test_local_and_collected_variables_are_so_in_each_slice() -> None:
    p = tf.get_local_variable("p", [4], partitioner=cut(2), collections=["mine"])
    assert tf.local_variables() == tf.get_collection("mine") == list(p)
    assert tf.trainable_variables() == tf.global_variables() == []


def test_a_custom_getter_sees_the_partitioner_and_gets_the_whole() -> None:
    asked: list[Any] = []

    def wrap(getter: Any, name: str, **arguments: Any) -> Any:
        asked.append((name, arguments["partitioner"]))
        return getter(name, **arguments)

    two = cut(2)
    with tf.variable_scope("a", custom_getter=wrap, partitioner=two):
        p = tf.get_variable("p", [4])
    assert asked == [("a/p", two)] and len(p) == 2


def test_sharing_gives_the_same_object_with_or_without_a_partitioner() -> None:
    p = tf.get_variable("p", [10, 3], partitioner=cut(4))
    with tf.variable_scope("", reuse=True):
        assert tf.get_variable("p", [10, 3], partitioner=cut(4)) is p
        assert tf.get_variable("p") is p
        assert tf.get_variable("p/part_1", [3, 3]) is list(p)[1]
    with tf.variable_scope("", reuse=tf.AUTO_REUSE, partitioner=cut(2)):
        q = tf.get_variable("q", [4])
        assert tf.get_variable("q", [4]) is q
    assert len(tf.global_variables()) == 6


@pytest.mark.parametrize(
    ("arguments", "reuse", "message"),
    [
        ({"name": "p", "shape": [10, 3], "partitioner": cut(3)}, True, r"specified partitions \[3, 1\] and found partitions \[4, 1\]"),
        ({"name": "p", "shape": [11, 3], "partitioner": cut(4)}, True, r"specified shape \(11, 3\) and found shape \(10, 3\)"),
        ({"name": "p", "dtype": tf.int32}, True, "Trying to share partitioned variable p, but specified dtype int32"),
        ({"name": "q", "shape": [4], "partitioner": cut(4)}, True, "PartitionedVariable q does not exist"),
        ({"name": "p", "shape": [10, 3], "partitioner": cut(4)}, None, "Partitioned variable with name p already exists"),
        ({"name": "p", "shape": [10, 3]}, None, "but a partitioned version of the variable was found: p/part_0"),
        ({"name": "p/part_0", "shape": [3, 3]}, None, "Variable p/part_0 already exists"),
        ({"name": "w", "shape": [4], "partitioner": cut(2)}, True, "an unpartitioned version of the variable was found: w"),
        ({"name": "w", "shape": [4], "partitioner": cut(2)}, None, "an unpartitioned version of the variable was found: w"),
    ],
)
def test_what_does_not_fit_what_is_there_is_refused(arguments: dict[str, Any], reuse: Any, message: str) -> None:
    tf.get_variable("p", [10, 3], partitioner=cut(4))
    tf.get_variable("w", [4])
    with tf.variable_scope("", reuse=reuse), pytest.raises(ValueError, match=message):
        tf.get_variable(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": [4, 2], "partitioner": 3}, "Partitioner must be callable, but received: 3"),
        ({"shape": [4, 2], "partitioner": lambda shape, dtype: 3}, "Partitioner must return a sequence, but saw: 3"),
        ({"shape": [4, 2], "partitioner": lambda shape, dtype: [3]}, r"does not match the Variable's rank: \[3\] vs. \(4, 2\)"),
        ({"shape": [4, 2], "partitioner": lambda shape, dtype: [0, 2]}, r"zero partitions for some axes: \[0, 2\]"),
        ({"shape": [4, 2], "partitioner": lambda shape, dtype: [2, 2]}, r"along one dimension: shape: \(4, 2\), partitioning: \[2, 2\]"),
        ({"shape": [4, 2], "partitioner": lambda shape, dtype: [5, 1]}, r"asked for 5 slices of dimension 0 of shape \(4, 2\)"),
        ({"shape": [None, 2], "partitioner": cut(2)}, r"must be fully defined, but instead was \(\?, 2\)"),
        ({"partitioner": cut(2)}, "must be fully defined, but instead was"),
        ({"shape": [9, 3], "initializer": TABLE, "partitioner": cut(2)}, r"the shape \(9, 3\) and that of its initial value, \(10, 3\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tf.get_variable("x", **arguments)
    assert not tf.global_variables()


# ----------------------------------------------------------------------------------------------------------- training


def test_optimizers_train_the_slices_and_their_slots_are_slices_too(graph: Graph) -> None:
    with tf.variable_scope("a", partitioner=cut(2)):
        p = tf.get_variable("p", initializer=TABLE)
        step = tf.train.MomentumOptimizer(0.5, 0.9).minimize(tf.nn.l2_loss(p), var_list=[p])
    tf.train.AdamOptimizer().minimize(tf.nn.l2_loss(p))
    infos = {v.op.name: v._get_save_slice_info() for v in tf.global_variables()}
    assert {name: None if info is None else (info.full_name, info.spec) for name, info in infos.items()} == {
        "a/p/part_0": ("a/p", "10 3 0,5:0,3"),
        "a/p/part_1": ("a/p", "10 3 5,5:0,3"),
        "a/a/p/part_0/Momentum": ("a/a/p/Momentum", "10 3 0,5:0,3"),  # made while the scope was open
        "a/a/p/part_1/Momentum": ("a/a/p/Momentum", "10 3 5,5:0,3"),
        "beta1_power": None,
        "beta2_power": None,
        "a/p/part_0/Adam": ("a/p/Adam", "10 3 0,5:0,3"),
        "a/p/part_0/Adam_1": ("a/p/Adam_1", "10 3 0,5:0,3"),
        "a/p/part_1/Adam": ("a/p/Adam", "10 3 5,5:0,3"),
        "a/p/part_1/Adam_1": ("a/p/Adam_1", "10 3 5,5:0,3"),
    }
    session = started(graph)
    session.run(step)
    assert np.allclose(session.run(tf.convert_to_tensor(p)), TABLE - 0.5 * TABLE)


def test_moving_averages_of_slices_are_slices() -> None:
    p = tf.get_variable("p", [4], partitioner=cut(2))
    average = tf.train.ExponentialMovingAverage(0.9)
    average.apply(list(p))
    assert [average.average(v)._get_save_slice_info().full_name for v in p] == ["p/ExponentialMovingAverage"] * 2
