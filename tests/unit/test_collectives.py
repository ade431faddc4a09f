"""Collectives: what they refuse, their gradients against closed forms, and what they become in a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.cluster.task import Task
from mpirt.compiler import exchange
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Collective, Plan, partition
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.program import END, FETCH, Meet, Program, Recv, Send
from mpirt.compiler.prune import prune
from mpirt.compiler.schedule import schedule
from mpirt.compiler.verify import verify
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.transport import board

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def on(task: int) -> Any:
    return tf.device(f"/job:worker/task:{task}")


def placeholders(count: int, shape: Any, dtype: Any = tf.float32) -> list[tf.Tensor]:
    xs = []
    for i in range(count):
        with on(i):
            xs.append(tf.placeholder(dtype, shape, f"x{i}"))
    return xs


# ---- refusals


@pytest.mark.parametrize("function", [tf.collective.all_reduce, tf.collective.reduce_scatter, tf.collective.all_gather])
def test_tensors_of_two_types_are_refused_and_both_places_named(function: Callable[..., Any]) -> None:
    with on(0):
        a = tf.placeholder(tf.float32, [2], "a")
    with on(1):
        b = tf.placeholder(tf.float64, [2], "b")
    with pytest.raises(errors.InvalidArgumentError) as caught:
        function([a, b])
    places = "'a:0' on /job:worker/task:0 is float32 (2,) and 'b:0' on /job:worker/task:1 is float64 (2,)."
    assert f"needs tensors of one type, but {places}" in str(caught.value)


@pytest.mark.parametrize("function", [tf.collective.all_reduce, tf.collective.reduce_scatter])
def test_tensors_of_two_shapes_are_refused_and_both_places_named(function: Callable[..., Any]) -> None:
    (a, b, _), (c,) = placeholders(3, [2, None]), placeholders(1, [4, 3])
    with pytest.raises(errors.InvalidArgumentError, match="needs tensors of one shape, but 'x0:0' on /job:worker/task:0 is") as caught:
        function([a, b, c])
    assert "and 'x0_1:0' on /job:worker/task:0 is float32 (4, 3)." in str(caught.value)


def test_truth_values_are_refused_with_what_to_do_instead() -> None:
    xs = placeholders(2, [2], tf.bool)
    with pytest.raises(errors.InvalidArgumentError, match="there is no sum of type bool; 'x0:0'") as caught:
        tf.collective.all_reduce(xs)
    assert "cast it to an integer type" in str(caught.value)
    assert len(tf.collective.broadcast(xs[0], xs)) == 2, "to copy them is well"
    assert len(tf.collective.all_gather(xs)) == 2


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda xs: tf.collective.all_reduce([]), TypeError, "all_reduce takes a list of tensors, at least one"),
        (lambda xs: tf.collective.all_reduce(xs[0]), TypeError, "all_reduce takes a list of tensors"),
        (lambda xs: tf.collective.all_reduce(xs, "product"), ValueError, "one of sum, mean, max, min, not 'product'"),
        (lambda xs: tf.collective.all_reduce(complex_of(xs), "max"), errors.InvalidArgumentError, "no max of type complex64"),
        (lambda xs: tf.collective.all_gather(xs, 1), errors.InvalidArgumentError, "there is no dimension 1"),
        (lambda xs: tf.collective.all_gather(xs, -2), errors.InvalidArgumentError, "there is no dimension -2"),
        (lambda xs: tf.collective.reduce_scatter(xs), errors.InvalidArgumentError, "can be divided by 2"),
    ],
)  # fmt: skip
def test_other_mistakes_are_refused_where_the_graph_is_built(call: Callable[..., Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(placeholders(2, [3]))


def complex_of(xs: list[tf.Tensor]) -> list[tf.Tensor]:
    return [tf.cast(x, tf.complex64) for x in xs]


def test_gathered_tensors_may_differ_along_the_axis_only() -> None:
    a, b = placeholders(1, [2, 3])[0], placeholders(1, [4, 3])[0]
    assert [y.shape.as_list() for y in tf.collective.all_gather([a, b])] == [[6, 3], [6, 3]]
    with pytest.raises(errors.InvalidArgumentError, match="along 1 needs tensors whose other sizes are equal, but 'x0:0'"):
        tf.collective.all_gather([a, b], 1)


# ---- results are where the inputs are


def test_each_result_shares_the_device_of_its_input_whatever_block_is_open() -> None:
    xs = placeholders(3, [3])
    with on(7):
        ys = tf.collective.all_reduce(xs) + tf.collective.all_gather(xs) + tf.collective.reduce_scatter(xs)
        copies = tf.collective.broadcast(xs[0], [xs[1], "/job:worker/task:2"])
    for i, y in enumerate(ys):
        assert y.op.colocated_with() == [xs[i % 3].op.name] and y.device == xs[i % 3].device
    assert [c.device for c in copies] == [xs[1].device, xs[2].device]


def test_a_collective_inside_a_body_is_computed_by_the_task_of_the_body() -> None:
    xs = placeholders(2, [3])
    y = tf.cond(tf.reduce_sum(xs[0]) > 0, lambda: tf.collective.all_reduce([xs[0] * 2, xs[1]])[1], lambda: xs[0])
    with tf.Session(cluster=one_process()) as session:
        assert session.run(y, {xs[0]: np.ones(3), xs[1]: np.full(3, 5.0)}).tolist() == [7.0] * 3


def test_a_graph_with_collectives_can_be_exported_and_imported_twice(graph: Graph) -> None:
    xs = placeholders(2, [2])
    ys = tf.collective.all_reduce(xs, "mean")
    proto = graph.as_graph_def()
    with Graph().as_default():
        tensors = [xs[0].name, xs[1].name, ys[1].name]
        a, b, mean = tf.import_graph_def(proto, return_elements=tensors, name="first") or ()
        c, d, again = tf.import_graph_def(proto, return_elements=tensors, name="second") or ()
        with tf.Session(cluster=one_process()) as session:
            found = session.run([mean, again], {a: [1, 2], b: [3, 4], c: [5, 5], d: [7, 9]})
    assert [v.tolist() for v in found] == [[2, 3], [6, 7]]


def one_process() -> Any:
    from mpirt.cluster.cluster_spec import ClusterSpec
    from mpirt.distributed.cluster import Cluster
    from mpirt.transport.loopback import LoopbackWorld

    return Cluster(LoopbackWorld(1).transport(0), ClusterSpec({"worker": 8}))


# ---- gradients


def gradient_of(
    call: Callable[[list[tf.Tensor]], list[tf.Tensor]], values: list[np.ndarray[Any, Any]], read: list[int], known: bool = True
) -> tuple[list[Any], list[np.ndarray[Any, Any]]]:
    """Gradients of the sum of (weights x result), over the results in ``read``; and the weights."""
    xs = [p for i, v in enumerate(values) for p in [placeholder_on(i, list(v.shape) if known else None)]]
    ys = call(xs)
    feeds = dict(zip(xs, values, strict=True))
    losses, weights = [], []
    with tf.Session(cluster=one_process()) as session:
        for i in read:
            weights.append(RNG.normal(size=session.run(ys[i], feeds).shape))
            with tf.colocate_with(ys[i]):
                losses.append(tf.reduce_sum(ys[i] * tf.constant(weights[-1])))
        grads = tf.gradients(losses, xs, colocate_gradients_with_ops=True)
        return session.run(grads, feeds), weights


def placeholder_on(task: int, shape: list[int] | None) -> tf.Tensor:
    with on(task):
        return tf.placeholder(tf.float64, shape)


@pytest.mark.parametrize("read", [[0, 1, 2], [1], [0, 2]])
@pytest.mark.parametrize("known", [True, False])
def test_gradients_of_sum_and_mean_reach_every_input_from_every_result_that_is_read(read: list[int], known: bool) -> None:
    values = [RNG.normal(size=(6, 2)) for _ in range(3)]
    for reduction, share in (("sum", 1), ("mean", 3)):
        found, weights = gradient_of(lambda xs, r=reduction: tf.collective.all_reduce(xs, r), values, read, known)  # type: ignore[misc]
        for grad in found:
            np.testing.assert_allclose(grad, np.sum(weights, 0) / share, rtol=1e-12)


@pytest.mark.parametrize("read", [[0, 1, 2], [1]])
@pytest.mark.parametrize(("reduction", "choose"), [("max", np.max), ("min", np.min)])
def test_gradients_of_extremes_go_to_the_winners_in_equal_shares(read: list[int], reduction: str, choose: Any) -> None:
    values = [np.array([1.0, 5.0, 2.0, 2.0]), np.array([3.0, 5.0, 2.0, 1.0]), np.array([2.0, 4.0, 2.0, 0.0])]
    found, weights = gradient_of(lambda xs: tf.collective.all_reduce(xs, reduction), values, read)
    won = np.stack(values) == choose(values, 0)
    np.testing.assert_allclose(np.stack(found), won / won.sum(0) * np.sum(weights, 0), rtol=1e-12)


@pytest.mark.parametrize("read", [[0, 1, 2], [1]])
@pytest.mark.parametrize(("axis", "known"), [(0, True), (1, True), (0, False)])
def test_gradients_of_gathered_tensors_are_their_own_parts_of_the_sum(read: list[int], axis: int, known: bool) -> None:
    values = [RNG.normal(size=(2, 3)) for _ in range(3)]
    found, weights = gradient_of(lambda xs: tf.collective.all_gather(xs, axis), values, read, known)
    for grad, expected in zip(found, np.split(np.sum(weights, 0), 3, axis), strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-12)


@pytest.mark.parametrize("read", [[0, 1, 2], [1], [2, 0]])
@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_gradients_of_scattered_parts_are_gathered(read: list[int], reduction: str) -> None:
    values = [RNG.normal(size=(6, 2)) for _ in range(3)]
    found, weights = gradient_of(lambda xs: tf.collective.reduce_scatter(xs, reduction), values, read)
    whole = np.zeros((6, 2))
    for i, weight in zip(read, weights, strict=True):
        whole[2 * i : 2 * i + 2] = weight
    for value, grad in zip(values, found, strict=True):
        share = {"sum": 1.0, "mean": 1 / 3, "max": value == np.max(values, 0)}[reduction]
        np.testing.assert_allclose(grad, whole * share, rtol=1e-12)


def test_the_gradient_of_a_broadcast_is_reduced_to_its_root() -> None:
    values = [RNG.normal(size=3)]
    found, weights = gradient_of(lambda xs: tf.collective.broadcast(xs[0], [f"/job:worker/task:{i}" for i in range(4)]), values, [0, 1, 3])
    np.testing.assert_allclose(found[0], np.sum(weights, 0), rtol=1e-12)


def test_sums_of_gradients_over_tasks_are_collectives_themselves(graph: Graph) -> None:
    xs = placeholders(3, [6])
    ys = tf.collective.all_gather(xs)
    assert {y.op.inputs[0].op.type for y in ys} == {"_CollectiveGather"}
    losses = []
    for i, y in enumerate(ys):
        with on(i):
            losses.append(tf.reduce_sum(y * y))
    grads = tf.gradients(losses, xs, colocate_gradients_with_ops=True)
    assert {g.op.type for g in grads} == {"_CollectiveReduceScatter"}
    assert "_CollectiveReduce" not in {op.type for op in prune(grads)}, "a sum that everybody gets, only to cut a part out of it"
    losses = []
    for i, y in enumerate(tf.collective.all_reduce(xs, "mean")):
        with on(i):
            losses.append(tf.reduce_sum(y * y))
    reduced = tf.gradients(losses, xs, colocate_gradients_with_ops=True)
    assert [g.op.type for g in reduced] == ["_CollectiveReduce"] * 3 and reduced[0].op.get_attr("divisor") == 3


# ---- what becomes of them in a program


def plan_of(fetches: list[Tensor | Operation]) -> Plan:
    needed = prune(fetches)
    placement = {op: DeviceName(Task("worker", int(op.device.rpartition(":")[2] or 0)), "CPU", 0) for op in needed}
    plan = partition(schedule(needed, placement), placement, fetches)
    verify(plan)
    return plan


def constants(count: int, size: int) -> list[tf.Tensor]:
    xs = []
    for i in range(count):
        with on(i):
            xs.append(tf.constant(np.zeros(size, np.float32)))
    return xs


def programs(plan: Plan, ranks: int) -> list[Program]:
    return [link(plan, lambda task: task.index % ranks, rank, ranks, "owner") for rank in range(ranks)]


def exchanged(program: Program) -> list[Any]:
    return [t for t in program.transfers if t.reason not in (FETCH, END)]


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_a_small_reduction_is_one_message_between_each_two_ranks(ranks: int) -> None:
    (program, *_) = programs(plan_of([y.op for y in tf.collective.all_reduce(constants(ranks, 10))]), ranks)
    ends = [(t.src_rank, t.dst_rank) for t in exchanged(program)]
    assert sorted(ends) == [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    assert {t.nbytes for t in exchanged(program)} == {40}
    assert {t.reason for t in exchanged(program)} == {"AllReduce/reduce, all pairs: all 0"}


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_large_reduction_sends_each_byte_twice_in_all_and_shares_the_work_equally(ranks: int) -> None:
    size = 1_000_003
    found = programs(plan_of([y.op for y in tf.collective.all_reduce(constants(ranks, size))]), ranks)
    assert sum(t.nbytes for t in exchanged(found[0])) == 2 * (ranks - 1) * size * 4
    for rank, program in enumerate(found):
        sent = sum(t.nbytes for t in exchanged(program) if t.src_rank == rank)
        assert abs(sent - 2 * (ranks - 1) * size * 4 / ranks) < 4 * 2 * ranks
        assert all(t.nbytes <= exchange.SEGMENT_NBYTES for t in exchanged(program))
    assert {t.reason.split(": ")[0] for t in exchanged(found[0])} == {"AllReduce/reduce, chunks"}


@pytest.mark.parametrize("ranks", [9, 64, 100])
def test_over_many_ranks_messages_grow_linearly(ranks: int) -> None:
    plan = plan_of([y.op for y in tf.collective.all_reduce(constants(ranks, 10))])
    program = link(plan, lambda task: task.index, 0, ranks, 0)
    assert len(exchanged(program)) == 2 * (ranks - 1)


def test_over_many_ranks_no_rank_talks_to_many() -> None:
    plan = plan_of([y.op for y in tf.collective.all_reduce(constants(64, 1))])
    for rank in range(64):
        program = link(plan, lambda task: task.index, rank, 64, 0)
        sends = [i for i in program.instructions if isinstance(i, Send) and "tree" in i.transfer.reason]
        assert len(sends) <= 7


def test_tensors_that_share_a_rank_are_reduced_before_anything_is_sent() -> None:
    (program, _) = programs(plan_of([y.op for y in tf.collective.all_reduce(constants(6, 10))]), 2)
    assert [(t.src_rank, t.dst_rank, t.nbytes) for t in exchanged(program)] == [(0, 1, 40), (1, 0, 40)]


def test_who_reads_no_result_sends_and_receives_nothing() -> None:
    ys = tf.collective.all_reduce(constants(3, 10))
    found = programs(plan_of([ys[1]]), 3)
    assert sorted((t.src_rank, t.dst_rank) for t in exchanged(found[0])) == [(0, 1), (2, 1)]
    for rank in (0, 2):
        assert not [i for i in found[rank].instructions if isinstance(i, Recv) and i.transfer.reason not in (FETCH, END)]


def test_one_broadcast_is_one_message_to_each_rank() -> None:
    (x,) = constants(1, 10)
    copies = tf.collective.broadcast(x, [f"/job:worker/task:{i}" for i in range(6)])
    (program, *_) = programs(plan_of([c.op for c in copies]), 3)
    assert sorted((t.src_rank, t.dst_rank) for t in exchanged(program)) == [(0, 1), (0, 2)]


def test_scattered_parts_go_only_where_they_are_wanted() -> None:
    ys = tf.collective.reduce_scatter(constants(4, 400))
    (program, *_) = programs(plan_of([y.op for y in ys]), 4)
    assert len(exchanged(program)) == 12 and {t.nbytes for t in exchanged(program)} == {400}


def test_the_dump_tells_which_way_an_exchange_goes() -> None:
    ys = tf.collective.all_reduce(constants(2, 100_000), "mean", name="gradients")
    text = programs(plan_of([y.op for y in ys]), 2)[0].text()
    assert "for gradients/reduce, chunks: to add 0" in text and "make " in text
    assert "= sum(" in text and ", 2) for gradients/reduce" in text


# ---- the proof


def test_a_plan_in_which_nobody_brings_a_collective_its_input_is_refused() -> None:
    plan = plan_of(list(tf.collective.all_reduce(constants(2, 3))))
    ((op, collective),) = plan.collectives.items()
    elsewhere = Collective(op, (Task("worker", 0), Task("worker", 5)), collective.targets)
    with pytest.raises(errors.InternalError, match="/job:worker/task:5 can't give"):
        verify(changed(plan, elsewhere))


def test_a_plan_that_gives_a_result_to_too_few_tasks_is_refused() -> None:
    plan = plan_of(list(tf.collective.all_reduce(constants(2, 3))))
    ((op, collective),) = plan.collectives.items()
    with pytest.raises(errors.InternalError, match="is not given to /job:worker/task:1"):
        verify(changed(plan, Collective(op, collective.sources, ((Task("worker", 0),),))))


def changed(plan: Plan, collective: Collective) -> Plan:
    return Plan(plan.nodes, plan.edges, plan.fetches, plan.feeds, plan.placement, plan.client, {collective.op: collective})


# ---- on boards


def over_memory(plan: Plan, memory: tuple[int, ...]) -> list[Program]:
    ranks = len(memory)
    return [link(plan, lambda task: task.index % ranks, rank, ranks, "owner", memory) for rank in range(ranks)]


@pytest.mark.skipif(not board.USABLE, reason="ranks share no boards on this processor")
@pytest.mark.parametrize("size", [1, 1000, 1_000_003])
def test_ranks_that_share_memory_meet_on_a_board_and_send_nothing(size: int) -> None:
    plan = plan_of([y.op for y in tf.collective.all_reduce(constants(3, size), "mean")])
    for rank, program in enumerate(over_memory(plan, (0, 0, 0))):
        (meet,) = [i for i in program.instructions if isinstance(i, Meet)]
        assert (meet.ranks, meet.rank, meet.shape, meet.how, meet.number, meet.whole) == ((0, 1, 2), rank, (size,), "sum", 3, size < 10_000)
        assert not [i for i in program.instructions if isinstance(i, Send | Recv)]
        by_message = link(plan, lambda task: task.index, rank, 3, "owner")
        assert [t.index for t in program.transfers] == [t.index for t in exchanged(by_message)], "tags are the same either way"
        whose = "each all of it, which ends the step" if meet.whole else "each a part, which ends the step"
        assert f"float32[{size}] on a board of ranks 0, 1, 2, {whose}, for AllReduce/reduce" in program.text((0, 0, 0))


@pytest.mark.parametrize(
    ("memory", "call"),
    [
        ((0, 0, 2), lambda: [y.op for y in tf.collective.all_reduce(constants(3, 10))]),
        ((0, 0, 0), lambda: [tf.collective.all_reduce(constants(3, 10))[1].op]),
        ((0, 0, 0), lambda: [y.op for y in tf.collective.all_reduce(constants(3, 0))]),
        ((0, 0, 0), lambda: [y.op for y in tf.collective.all_reduce(placeholders(3, None))]),
        ((0, 0, 0), lambda: [y.op for y in tf.collective.reduce_scatter(constants(3, 9))]),
    ],
    ids=["one rank elsewhere", "one reader", "no elements", "no known size", "scattered"],
)
def test_everything_else_goes_by_message(memory: tuple[int, ...], call: Callable[[], list[Operation]]) -> None:
    for program in over_memory(plan_of(call()), memory):
        assert not any(isinstance(i, Meet) for i in program.instructions)
        assert any(isinstance(i, Send | Recv) and i.transfer.reason not in (FETCH, END) for i in program.instructions)
