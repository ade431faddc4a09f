"""Golden cases of cond, case and while_loop, exported with bodies. See tf_case.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.tf_case import Builder, case


@case(functional=True, dynamic=True)
def cond_values(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3), "y")
    for flag in (True, False):
        p = b.ph(np.array(flag), f"p_{flag}")
        b.out(tf.cond(p, lambda: x * y, lambda: x - y))
        b.out(tf.cond(p, lambda: [tf.reduce_sum(x, 0), tf.shape(x)], lambda: [y[0] * 2.0, tf.shape(y) + 1]))
        b.out(tf.cond(tf.reduce_all(x > y), lambda: tf.constant(1), lambda: tf.constant(2)))


@case(functional=True)
def cond_structures(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(4), "x")
    p = b.ph(np.array(True), "p")
    got = tf.cond(p, lambda: {"b": (x, [x * 2]), "a": x[:2]}, lambda: {"b": (x + 1, [x * 3]), "a": x[2:]})
    b.out(got["a"], got["b"][0], got["b"][1][0])
    words = tf.cond(p, lambda: tf.constant(["yes"]), lambda: tf.constant(["no"]))
    b.out(words)


@case(functional=True)
def cond_nested(tf: Any, b: Builder) -> None:
    x = b.ph(np.float32(3), "x")
    for low, high in ((0.0, 10.0), (5.0, 10.0), (0.0, 2.0)):
        b.out(tf.cond(x > low, lambda high=high: tf.cond(x < high, lambda: x * 1, lambda: x * 2), lambda: x * 3))


@case(functional=True)
def case_values(tf: Any, b: Builder) -> None:
    x = b.ph(np.float32(3), "x")
    for limit in (1.0, 2.5, 5.0):
        b.out(tf.case([(x < limit, lambda: x * 2.0), (x < limit + 1.0, lambda: x * 3.0)], default=lambda: x * 4.0))


@case(functional=True)
def while_values(tf: Any, b: Builder) -> None:
    x, m = b.ph(b.normal(3), "x"), b.ph(b.normal(3, 3), "m")
    i, power = tf.while_loop(
        lambda i, v: i < 4, lambda i, v: (i + 1, tf.reshape(tf.matmul(m, tf.reshape(v, [3, 1])), [3])), [tf.constant(0), x]
    )
    b.out(i, power)
    b.out(tf.while_loop(lambda v: tf.reduce_sum(v) < 100.0, lambda v: v * v + 1.0, [x]))
    b.out(tf.while_loop(lambda v: tf.constant(True), lambda v: v + 1.0, [x], maximum_iterations=7))


@case(functional=True)
def while_growing(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(1), "x")
    i, grown = tf.while_loop(
        lambda i, v: i < 3,
        lambda i, v: (i + 1, tf.concat([v, v + 1.0], 0)),
        [tf.constant(0), x],
        shape_invariants=[tf.TensorShape([]), tf.TensorShape([None])],
    )
    b.out(i, grown)


@case(functional=True)
def while_with_cond(tf: Any, b: Builder) -> None:
    n = b.ph(np.int32(27), "n")
    steps, last = tf.while_loop(
        lambda k, m: m > 1,
        lambda k, m: (k + 1, tf.cond(tf.equal(m % 2, 0), lambda: m // 2, lambda: 3 * m + 1)),
        [tf.constant(0), n],
    )
    b.out(steps, last)
    p = b.ph(np.array(False), "p")
    b.out(tf.cond(p, lambda: n, lambda: tf.while_loop(lambda m: m < 1000, lambda m: m * 2, [n])))


@case(functional=True)
def cond_of_variables(tf: Any, b: Builder) -> None:
    v = tf.Variable([1.0, 2.0], name="v", use_resource=True)
    p = b.ph(np.array(True), "p")
    x = b.ph(b.normal(2), "x")
    b.run(targets=tf.global_variables_initializer(), init=True)
    b.out(tf.cond(p, lambda: v * x, lambda: v + x), tf.cond(p, lambda: x, lambda: v.read_value()))


@case(functional=True)
def cond_gradients(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, y = b.ph(b.normal(3), "x"), b.ph(b.normal(3), "y")
    for flag in (True, False):
        p = b.ph(np.array(flag), f"p_{flag}")
        b.grad(tf.cond(p, lambda: tf.sin(x) * y, lambda: tf.exp(x) + 1.0), [x, y])


@case(functional=True)
def while_gradients(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, m = b.ph(b.normal(3), "x"), b.ph(b.normal(3, 3), "m")
    out = tf.while_loop(
        lambda i, v: i < 3, lambda i, v: (i + 1, tf.tanh(tf.reshape(tf.matmul(m, tf.reshape(v, [3, 1])), [3]))), [tf.constant(0), x]
    )
    b.grad(out[1], [x, m])


@case(functional=True)
def switch_cases(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(3), "x")
    branches = [lambda: x * 2.0, lambda: tf.square(x), lambda: x + 1.0]
    for number in (-1, 0, 1, 2, 7):
        index = b.ph(np.int32(number), shape=[])
        b.out(tf.switch_case(index, branches), tf.switch_case(index, branches[:2], default=branches[2]))
        b.out(tf.switch_case(index, {1: branches[0], 0: branches[1]}), tf.switch_case(index, [(1, branches[2]), (0, branches[0])]))
        b.out(tf.switch_case(index, branches[:1]), tf.switch_case(index, branches[:1], default=branches[1]))
        b.out(tf.switch_case(index, [lambda: [x], lambda: [x * 3.0]])[0])


@case(functional=True)
def switch_case_grads(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(3), "x")
    for number in (0, 1, 2):
        index = b.ph(np.int32(number), shape=[])
        b.grad(tf.switch_case(index, [lambda: x * 2.0, lambda: tf.square(x), lambda: tf.sin(x)]), x)
