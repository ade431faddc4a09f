"""Digests of graphs: the same in every process, different for every difference that matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.fingerprint import digest, fingerprint, summary
from mpirt.graph.graph import Graph

ROOT = Path(__file__).parent.parent.parent

SCRIPT = """
import numpy as np
import mpirt as tf
from mpirt.graph.fingerprint import fingerprint
with tf.device(tf.train.replica_device_setter(ps_tasks=2)):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    w = tf.get_variable("w", [3, 2], initializer=tf.glorot_uniform_initializer(seed=1))
    names = tf.constant(["a", "b"])
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=tf.one_hot([0, 1], 2), logits=tf.matmul(x, w)))
    with tf.control_dependencies([names, loss]):
        train = tf.train.AdamOptimizer(0.1).minimize(loss)
print(fingerprint(tf.get_default_graph().get_operations()).hex())
"""


def test_interpreters_with_different_hash_seeds_agree() -> None:
    found = set()
    for seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=120, check=True)
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop().strip()) == 64


def of(build: Callable[[], Any]) -> bytes:
    with Graph().as_default() as graph:
        build()
        return fingerprint(graph.get_operations())


def base() -> None:
    a = tf.constant([1.0, 2.0], name="a")
    b = tf.constant([3.0, 4.0], name="b")
    tf.subtract(a, b, name="c")


def other_value() -> None:
    a = tf.constant([1.0, 2.5], name="a")
    b = tf.constant([3.0, 4.0], name="b")
    tf.subtract(a, b, name="c")


def other_type() -> None:
    a = tf.constant([1.0, 2.0], tf.float64, name="a")
    b = tf.constant([3.0, 4.0], tf.float64, name="b")
    tf.subtract(a, b, name="c")


def other_name() -> None:
    a = tf.constant([1.0, 2.0], name="a")
    b = tf.constant([3.0, 4.0], name="b")
    tf.subtract(a, b, name="d")


def other_inputs() -> None:
    a = tf.constant([1.0, 2.0], name="a")
    b = tf.constant([3.0, 4.0], name="b")
    tf.subtract(b, a, name="c")


def other_device() -> None:
    a = tf.constant([1.0, 2.0], name="a")
    b = tf.constant([3.0, 4.0], name="b")
    with tf.device("/cpu:0"):
        tf.subtract(a, b, name="c")


def other_control() -> None:
    a = tf.constant([1.0, 2.0], name="a")
    with tf.control_dependencies([a]):
        b = tf.constant([3.0, 4.0], name="b")
    tf.subtract(a, b, name="c")


def other_attribute() -> None:
    base()
    with tf.get_default_graph().attr_scope({"_class": ["loc:@a"]}):
        tf.identity(tf.get_default_graph().get_tensor_by_name("c:0"), name="e")


def other_order() -> None:
    b = tf.constant([3.0, 4.0], name="b")
    a = tf.constant([1.0, 2.0], name="a")
    tf.subtract(a, b, name="c")


def other_shape() -> None:
    a = tf.constant([[1.0, 2.0]], name="a")
    b = tf.constant([3.0, 4.0], name="b")
    tf.subtract(a, b, name="c")


@pytest.mark.parametrize(
    "build",
    [other_value, other_type, other_name, other_inputs, other_device, other_control, other_attribute, other_order, other_shape],
)
def test_any_difference_in_a_graph_changes_it(build: Callable[[], None]) -> None:
    assert of(base) == of(base)
    assert of(build) != of(base)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (np.zeros(100, np.float32), np.r_[np.zeros(99, np.float32), np.float32(1)]),
        (np.zeros((10, 10), np.float32), np.zeros((5, 20), np.float32)),
        (np.array([b"ab", b"c"], object), np.array([b"a", b"bc"], object)),
        (np.array([0.0], np.float32), np.array([-0.0], np.float32)),
        (np.array(True), np.array(False)),
    ],
    ids=["last of many", "shape", "strings", "sign of zero", "bool"],
)
def test_constants_count_with_every_byte(one: Any, two: Any) -> None:
    assert of(lambda: tf.constant(one)) != of(lambda: tf.constant(two))
    assert of(lambda: tf.constant(one)) == of(lambda: tf.constant(one.copy()))


def test_constants_count_where_they_are() -> None:
    def pair(first: float, second: float) -> Callable[[], Any]:
        return lambda: [tf.constant(np.full(100, value, np.float32)) for value in (first, second)]

    assert of(pair(1, 2)) != of(pair(2, 1))
    assert of(pair(1, 2)) == of(pair(1, 2))


def test_the_line_in_the_users_file_does_not_count() -> None:
    with Graph().as_default() as graph:
        tf.constant(1.0, name="a")
    with Graph().as_default() as again:
        tf.constant(1.0, name="a")
    (a,), (b,) = graph.get_operations(), again.get_operations()
    assert a.location != b.location and digest(a) == digest(b)


def test_the_summary_is_what_a_person_compares() -> None:
    with Graph().as_default(), tf.device("/job:ps/cpu:0"):
        a = tf.constant([1.0, 2.0], name="a")
        o = tf.placeholder(tf.float32, name="o")
        with tf.control_dependencies([a]):
            y = tf.negative(o, name="y")
    assert summary(a.op) == "a = Const(){dtype=mpirt.float32, value=float32[1.0, 2.0]} on /job:ps/device:CPU:0"
    assert summary(y.op) == "y = Neg(o:0, ^a){T=mpirt.float32} on /job:ps/device:CPU:0"
