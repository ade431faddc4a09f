"""cond and while_loop on several ranks: what is captured travels, bodies send nothing, errors are every rank's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.distributed.cluster import Cluster
from tests.loopback.simulated_ranks import Traffic, run_ranks, values

SPEC = {"ps": 2, "worker": 2}


def at(job: str, index: int) -> Any:
    return tf.device(f"/job:{job}/task:{index}")


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_a_branch_uses_of_other_tasks_comes_to_it_however_many_ranks_there_are(size: int, seed: int | None) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with at("ps", 0):
            v = tf.Variable([1.0, 2.0], name="v")
        with at("ps", 1):
            w = tf.Variable([10.0, 20.0], name="w")
        with at("worker", 0):
            p = tf.placeholder(tf.bool, [])
        with at("worker", 1):
            got = tf.cond(p, lambda: v * 3.0, lambda: tf.while_loop(lambda u: tf.reduce_sum(u) < 100.0, lambda u: u * 2.0, [w]))
            grads = tf.gradients(got, [v, w])
        with tf.Session(cluster=cluster) as session:
            session.run(tf.global_variables_initializer())
            assert session.placement()["cond"] == "/job:worker/task:1/device:CPU:0"
            return [np.asarray(session.run([got, *grads], {p: flag})).tolist() for flag in (True, False, True)]

    taken, other = [[3.0, 6.0], [3.0, 3.0], [0.0, 0.0]], [[40.0, 80.0], [0.0, 0.0], [4.0, 4.0]]
    assert values(size, script, SPEC, seed) == [[taken, other, taken]] * size


def test_the_turns_of_a_loop_send_no_messages() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with at("ps", 0):
            v = tf.Variable(2.0, name="v")
        with at("worker", 0):
            n = tf.placeholder(tf.int32, [])
        with at("worker", 1):
            _, power = tf.while_loop(lambda i, u: i < n, lambda i, u: (i + 1, u * v), [tf.constant(0), tf.constant(1.0)])
        with tf.Session(cluster=cluster) as session:
            session.run(tf.global_variables_initializer())
            sent = []
            for turns in (2, 2, 20):
                before = dataclasses.replace(cluster.transport.counters)
                assert session.run(power, {n: turns}) == 2.0**turns
                sent.append(Traffic.since(before, cluster.transport.counters).sent)
            return sent[1:]

    for few, many in values(4, script, SPEC):
        assert few == many


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_cond_that_changes_a_variable_runs_beside_it_and_readers_behind_it_see_the_change(size: int) -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with at("ps", 1):
            v = tf.Variable([1.0, 2.0], name="v")
        with at("worker", 0):
            p = tf.placeholder(tf.bool, [])
            delta = tf.constant([5.0, 5.0])
        update = tf.cond(p, lambda: tf.group(v.assign_add(delta)), lambda: tf.group(v.assign_sub(delta)))
        with at("worker", 1), tf.control_dependencies([update]):
            after = tf.identity(v._variable) * 10.0
        with tf.Session(cluster=cluster) as session:
            session.run(tf.global_variables_initializer())
            assert session.placement()["cond"] == "/job:ps/task:1/device:CPU:0"
            return [session.run(after, {p: flag}).tolist() for flag in (True, False, False)]

    assert values(size, script, SPEC) == [[[60.0, 70.0], [10.0, 20.0], [-40.0, -30.0]]] * size


def test_a_change_of_another_tasks_variable_inside_is_refused_naming_both() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with at("ps", 1):
            v = tf.Variable(1.0, name="v")
        with at("worker", 0):
            update = tf.cond(v > 0.0, lambda: v.assign_add(1.0), lambda: v.assign_sub(1.0), name="update")
        with tf.Session(cluster=cluster) as session:
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                session.run(update)
            return str(caught.value)

    for text in values(2, script, SPEC):
        assert text.startswith(
            "'update' (If) on /job:worker/task:0 changes 'v' in a body, but 'v' is on /job:ps/task:1:"
            " a body can change variables of its own task only."
        )
        assert "Mend: drop the device block around 'update'" in text


def test_variables_of_two_tasks_can_not_be_changed_in_one_cond() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with at("ps", 0):
            v = tf.Variable(1.0, name="v")
        with at("ps", 1):
            w = tf.Variable(1.0, name="w")
        update = tf.cond(tf.constant(True), lambda: v.assign_add(1.0), lambda: w.assign_add(1.0), name="update")
        with tf.Session(cluster=cluster) as session, pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run(update)
        return str(caught.value)

    for text in values(2, script, SPEC):
        assert "cannot colocate 'w' on /job:ps/task:1 with 'v' on /job:ps/task:0" in text
        assert "Mend: 'update' changes both in its bodies: pin them to the same task, or change one of them outside." in text


def test_an_error_inside_a_body_is_every_ranks_error() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        with at("worker", 0):
            x = tf.placeholder(tf.int32, [])
        with at("worker", 1):
            got = tf.cond(x < 5, lambda: tf.floordiv(7, x, name="divide"), lambda: x, name="choice")
        with tf.Session(cluster=cluster) as session:
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                session.run(got, {x: 0})
            assert session.run(got, {x: 9}) == 9
            return str(caught.value)

    texts = values(3, script, SPEC)
    assert len(set(texts)) == 1
    assert "divide" in texts[0] and "inside 'choice_true', a body of 'choice' (StatelessIf)" in texts[0]


def test_ranks_whose_bodies_differ_are_told_so() -> None:
    def script(rank: int, cluster: Cluster) -> Any:
        x = tf.constant(1.0)
        got = tf.cond(x > 0.0, lambda: x * float(rank), lambda: x, name="choice")
        with tf.Session(cluster=cluster) as session:
            session.run(got)

    for outcome in run_ranks(2, script, {"worker": 2}):
        assert isinstance(outcome.error, tf.errors.InvalidArgumentError)
        assert "ranks built different graphs" in str(outcome.error) and "choice = StatelessIf" in str(outcome.error)


def test_bodies_use_the_gpus_of_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_EMULATED_GPUS", "2")

    def script(rank: int, cluster: Cluster) -> Any:
        with tf.device("/job:worker/task:1/gpu:1"):
            v = tf.Variable([1.0, 2.0], name="v")
        x = tf.placeholder(tf.float32, [2])

        def body(i: Any, u: Any) -> Any:
            with tf.device("/cpu:0"):
                on_cpu = u + x
            with tf.control_dependencies([v.assign_add(on_cpu)]):
                return i + 1, v.read_value() * 2.0

        _, got = tf.while_loop(lambda i, u: i < 3, body, [tf.constant(0), tf.zeros([2])])
        grads = tf.gradients(tf.cond(x[0] > 0.0, lambda: tf.sin(x) * x, lambda: x), x)
        with tf.Session(cluster=cluster) as session:
            session.run(tf.global_variables_initializer())
            assert session.placement()["while"] == "/job:worker/task:1/device:GPU:1"
            found = session.run([got, grads[0]], {x: [1.0, 1.0]})
            return [found[0].tolist(), session.run(v).tolist(), found[1].tolist()]

    def expected() -> Any:
        v, u = np.array([1.0, 2.0], np.float32), np.zeros(2, np.float32)
        for _ in range(3):
            v = v + u + 1.0
            u = v * 2.0
        slope = np.float32(np.sin(1.0) + np.cos(1.0))
        return [u.tolist(), v.tolist(), slope]

    for got, v, slope in values(2, script, {"worker": 2}):
        assert [got, v] == expected()[:2]
        np.testing.assert_allclose(slope, [expected()[2]] * 2, rtol=1e-6)
