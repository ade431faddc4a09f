"""TensorFlow's answers (tests/golden) again, with a session that puts on the GPU whatever can run there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph import device_scope
from mpirt.ops.apply import apply_op
from tests.golden.tf_case import CASES, build
from tests.gpu.kernels import note_kernels
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
        if answers.entry["steps"]:  # else it is a graph that can't be placed here
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
        if steps:
            note_kernels(session, graph)


def test_types_that_no_case_has_agree_with_numpy() -> None:
    x = np.random.default_rng(6).standard_normal((3, 3)).astype(np.float32)
    words = np.array([3, 1, 3, 2, 1], np.int32)
    with tf.Graph().as_default() as graph, tf.device("/gpu:0"):
        fed = apply_op("PlaceholderV2", dtype=tf.float32, shape=[3, 3])
        found = [
            apply_op("CheckNumericsV2", fed, message="odd"),
            apply_op("LinSpace", np.float32(1), np.float32(2), 5),
            apply_op("MatrixDiag", fed),
            apply_op("MatrixDiagPart", fed),
            apply_op("MatrixDiagV2", fed[0], 1, -1, -1, np.float32(7)),
            apply_op("MatrixDiagPartV2", fed, -1, np.float32(0)),
            apply_op("MatrixSetDiag", fed, fed[1]),
            *apply_op("UniqueV2", tf.constant(words), np.zeros(0, np.int64)),
        ]
        with tf.Session(graph=graph) as session:
            values = session.run(found, {fed: x})
            note_kernels(session, graph)
    shifted = np.full((4, 4), 7, np.float32)
    shifted[[0, 1, 2], [1, 2, 3]] = x[0]
    changed = x.copy()
    np.fill_diagonal(changed, x[1])
    rows = np.stack([np.diag(row) for row in x])
    wanted = [x, np.linspace(1, 2, 5, dtype=np.float32), rows, np.diag(x), shifted, np.diag(x, -1), changed, [3, 1, 2], [0, 1, 0, 2, 1]]
    for op, value, right in zip(found, values, wanted, strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-6, err_msg=op.name)
