"""TensorFlow's answers (tests/golden) again, with a session that puts on the GPU whatever can run there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph import device_scope
from tests import reference
from tests.golden.tf_case import CASES, build
from tests.unit import test_tf_golden
from tests.unit.test_tf_golden import Answers, cases, difference, imported, run_step

pytestmark = pytest.mark.gpu

# Sums of numbers of size 1 that cancel: what is left depends on the order in which they are added.
CANCELLING = ("grad_moments", "grad_moments_dyn")
# TensorFlow's answer on a CPU is an error; a GPU makes the row NaN (as TensorFlow's does).
NAN_INSTEAD = ("cross_entropy_bad_label",)


@pytest.fixture(autouse=True)
def no_cluster_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases name devices of clusters that don't exist; a session of an earlier test has started one."""
    monkeypatch.setattr(device_scope, "_device_check", None)


def beside_numbers_of_size_1(actual: Any, expected: Any, scale: float) -> str:
    same = np.shape(actual) == expected.shape and np.allclose(actual, expected, rtol=1e-5, atol=1e-6)
    return "" if same else difference(actual, expected, scale)


def note_kernels(session: tf.Session, graph: Any) -> None:
    """Remember which kernels for GPUs have run."""
    placement = session.placement()
    for op in graph.get_operations():
        if "GPU" in placement.get(op.name, ""):
            reference.RAN.add(op.type)


@pytest.mark.parametrize("name", sorted(set(cases()) - set(NAN_INSTEAD)))
def test_an_imported_graph_gives_tensorflows_answers_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(name)
    if name in CANCELLING:
        monkeypatch.setattr(test_tf_golden, "difference", beside_numbers_of_size_1)
    graph = imported(answers)
    with tf.Session(graph=graph) as session:
        for number, step in enumerate(answers.entry["steps"]):
            wrong = run_step(session, graph, answers, step)
            assert not wrong, f"{name}, step {number}: {wrong}"
        note_kernels(session, graph)


def test_a_label_out_of_range_makes_its_row_nan_and_no_other() -> None:
    x, labels = tf.placeholder(tf.float32, [3, 4]), tf.placeholder(tf.int32, [3])
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x)
    grad = tf.gradients(loss, x)[0]
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    with tf.Session() as session:
        rows, slopes = session.run([loss, grad], {x: values, labels: [1, 4, -1]})
        assert "GPU" in session.placement()[loss.op.name]
    np.testing.assert_array_equal(np.isnan(rows), [False, True, True])
    np.testing.assert_array_equal(np.isnan(slopes), np.repeat([[False], [True], [True]], 4, 1))
    e = np.exp([-3.0, -2, -1, 0])
    np.testing.assert_allclose(rows[0], np.log(e.sum()) + 2, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(n for n, entry in cases().items() if not entry.get("raw") and n not in NAN_INSTEAD))
def test_the_same_calls_give_tensorflows_answers_on_a_gpu(name: str) -> None:
    answers = Answers(name)
    graph, _, runs = build(tf, CASES[name])
    steps = [step for step in answers.entry["steps"] if not step.get("inspect")]
    compare = beside_numbers_of_size_1 if name in CANCELLING else difference
    with tf.Session(graph=graph) as session:
        for run, step in zip(runs, steps, strict=True):
            if run.error:
                with pytest.raises(getattr(tf.errors, run.error)):
                    session.run([*run.targets, *run.fetch], run.feeds)
                continue
            values = session.run([*run.targets, *run.fetch], run.feeds)[len(run.targets) :]
            for (theirs, expected), value in zip(answers.expected(step), values, strict=True):
                wrong = compare(value, expected, answers.entry.get("scale", 1.0))
                assert not wrong, f"{name}: {theirs}: {wrong}"
        note_kernels(session, graph)
