"""Kernels that are told where to write their result: into an array that every step uses again, or where it is sent from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.compiler import packets
from mpirt.compiler.program import Run
from mpirt.graph.graph import Graph, Tensor
from mpirt.graph.op_def import no_gradient, op_types, register_kernel, register_op
from mpirt.ops.apply import apply_op
from mpirt.runtime.executor import Executor
from tests.unit.test_executor import both, by_name, executors, first_transport

told: list[tuple[str, Any]] = []  # names of the operations that ran, and what they were told


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    """A graph, and an operation whose kernel takes an ``out``, but doesn't use it where ``factor`` is negative."""
    if "ToldProbe" not in op_types():

        @register_op("ToldProbe", inputs=["inputs: N*float64"], outputs=["output: float64"], attrs={"size": "int", "factor": "float"})
        def _shape(ctx: Any) -> list[Any]:
            return [(ctx.attr("size"),) if ctx.attr("size") >= 0 else None]

        @register_kernel("ToldProbe", devices=("CPU",), memory="own")
        def _kernel(ctx: Any, *inputs: Any, out: Any, size: int, factor: float) -> Any:
            told.append((ctx.op.name, out))
            return np.multiply(np.sum(inputs, 0), factor, out=out if factor > 0 else None)

        no_gradient("ToldProbe", reason="a test")
    told.clear()
    with Graph().as_default() as graph:
        yield graph


def probe(inputs: list[Tensor], name: str, size: int = 3, factor: float = 2.0) -> Tensor:
    made: Tensor = apply_op("ToldProbe", inputs, size=size, factor=factor, N=len(inputs), name=name)
    return made


def feed(executor: Executor, step: int) -> dict[int, Any]:
    return {slot: np.arange(3.0) + step for slot in executor.program.feeds.values()}


@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 5, 9])
def test_results_that_nobody_keeps_go_where_they_went_in_the_step_before_whatever_the_number_of_inputs(inputs: int) -> None:
    x = tf.placeholder(tf.float64, [3], "x")
    first = probe([x] * inputs, "first")
    last = probe([first] * inputs, "last")
    (executor,) = executors([last], [x])
    kept = []
    for step in range(3):
        kept.append(executor.run(feed(executor, step))[0])
    places: dict[str, list[Any]] = {}
    for name, out in told:
        places.setdefault(name, []).append(out)
    assert all(out is places["first"][0] is not None for out in places["first"])
    assert places["last"] == [None] * 3, "it is fetched: the user keeps it"
    for step, value in enumerate(kept):
        np.testing.assert_array_equal(value, (np.arange(3.0) + step) * (2.0 * inputs) ** 2)


def test_two_results_share_memory_only_if_one_has_been_read_before_the_other_is_made() -> None:
    x = tf.placeholder(tf.float64, [3], "x")
    chain = [x]
    for i in range(5):
        chain.append(probe([chain[-1]], f"chain{i}"))
    last = probe([chain[-1], chain[1]], "last")  # the first one lives on until here
    (executor,) = executors([last], [x])
    (found,) = executor.run(feed(executor, 1))
    np.testing.assert_array_equal(found, 2 * (2 + 32) * (np.arange(3.0) + 1))
    places = dict(told)
    for i in range(4):
        assert not np.shares_memory(places[f"chain{i}"], places[f"chain{i + 1}"])
        assert i == 0 or not np.shares_memory(places["chain0"], places[f"chain{i}"])
    assert np.shares_memory(places["chain1"], places["chain3"])
    assert executor.buffers.peak_nbytes == 4 * 24, "three arrays, and what is fetched"


@pytest.mark.parametrize("reason", ["kept by a Python function", "of unknown shape", "viewed and kept"])
def test_a_result_that_may_be_kept_or_is_of_unknown_shape_is_an_array_of_its_own(reason: str) -> None:
    x = tf.placeholder(tf.float64, [3], "x")
    made = probe([x], "made", -1 if reason == "of unknown shape" else 3)
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kept.append(value)
        return value

    read = tf.identity(made) if reason == "viewed and kept" else made
    last = probe([read], "last") if reason == "of unknown shape" else tf.py_func(keep, [read], tf.float64)
    (executor,) = executors([last], [x])
    found = [executor.run(feed(executor, step))[0] for step in range(3)]
    assert [out for name, out in told if name == "made"] == [None] * 3
    for step, value in enumerate(kept or found):
        np.testing.assert_array_equal(value, (np.arange(3.0) + step) * (2 if kept else 4))


@pytest.mark.parametrize("left", [True, False])
def test_what_is_sent_in_a_packet_is_made_there_unless_the_last_packet_is_still_on_its_way(
    left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "_is_the_users", lambda op: False)  # as if they were known to be quick
    x = tf.placeholder(tf.float64, [3], "x")
    made = [probe([x], "first"), probe([x], "second")]
    here = probe(made, "here")
    there = probe([*made, here], "last_on_1")
    sender, receiver = executors([there], [x], 2, by_name)
    if not left:
        monkeypatch.setattr(first_transport(sender), "test_all", lambda sends: False)
    for step in range(3):
        told.clear()
        mine, theirs = both(sender, receiver, feed(sender, step))
        for found in (mine, theirs):
            np.testing.assert_array_equal(found[0], 2 * (4 + 8) * (np.arange(3.0) + step))
        places = dict(told)
        assert all((places[name] is not None) == left for name in ("first", "second", "here"))
        if left:
            assert places["first"].base is places["second"].base is places["here"].base is not None, "the buffer of the packet"


@pytest.mark.parametrize("where", ["last", "last_on_1"])
def test_a_kernel_that_returns_another_array_than_it_was_told_is_believed(where: str) -> None:
    x = tf.placeholder(tf.float64, [3], "x")
    last = probe([probe([x], "made", factor=-1.0)], where)
    ranks = executors([last], [x], 2, by_name)
    for step in range(2):
        (found, *_), _ = both(ranks[0], ranks[1], feed(ranks[0], step))
        np.testing.assert_array_equal(found, -2 * (np.arange(3.0) + step))
    assert dict(told)["made"] is not None


@pytest.mark.parametrize("factor", [2.0, -2.0])
def test_a_segment_reads_what_a_kernel_returned_and_not_what_lies_where_it_was_told_to_write(factor: float) -> None:
    x = tf.placeholder(tf.float64, [3], "x")
    chain = made = probe([x], "made", factor=factor)
    for _ in range(6):
        chain = chain + made
    (executor,) = executors([probe([chain], "last")], [x])
    (segment,) = executor.buffers.segments
    assert segment.told, "the segment reads what the kernel is told to write"
    for step in range(3):
        (found,) = executor.run(feed(executor, step))
        np.testing.assert_array_equal(found, 2 * 7 * factor * (np.arange(3.0) + step))


def test_the_program_for_people_says_what_is_written_where() -> None:
    x = tf.placeholder(tf.float64, [3], "x")
    made = probe([x], "made")
    here = probe([made], "here")
    ranks = executors([probe([here], "last_on_1"), probe([made], "last")], [x], 2, by_name)
    lines = [line for line in ranks[0].buffers.text().splitlines() if "writes to" in line]
    slots = {i.op.name: i.outputs[0] for i in ranks[0].program.instructions if isinstance(i, Run)}
    assert [line.split("writes to ")[1] for line in lines] == [f"s{slots['made']}[b0]", f"s{slots['here']} in its packet"]
