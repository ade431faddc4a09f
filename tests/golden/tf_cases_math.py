"""Golden cases of constants, elementwise math, comparisons, matmul and reductions. See tf_case.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.tf_case import Builder, case, words

# --- constants, placeholders, identities ---------------------------------------------------------------------------


@case
def constants(tf: Any, b: Builder) -> None:
    for name in words("float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"):
        b.out(tf.constant([[1, 2, 3], [4, 5, 100]], dtype=getattr(tf, name), name=name))
    b.out(tf.constant([True, False]), tf.constant(2.5), tf.constant(7), tf.constant([1, 2.5]))
    b.out(tf.constant(3.0, shape=[2, 3]), tf.constant([1, 2], shape=[2, 2]), tf.constant(np.zeros([0, 3], np.float32)))
    b.out(tf.constant([], dtype=tf.int32), tf.constant(np.float64(2.0)), tf.constant(2**40), tf.constant(-1, tf.int64))
    b.out(tf.constant(1 + 2j), tf.constant([1j, 2.0], tf.complex64), tf.constant([[np.inf, -np.inf, np.nan]]))


@case
def constants_string(tf: Any, b: Builder) -> None:
    b.out(tf.constant("hello"), tf.constant(["a", "bcd", ""]), tf.constant([[b"x\xff"], [b"y"]]), tf.constant("\u00e9"))
    x = b.ph(np.array([b"one", b"two"]), "x")
    b.out(tf.identity(x), tf.equal(x, "two"), tf.not_equal(x, ["one", "one"]), tf.concat([x, ["three"]], 0))
    b.out(tf.gather(x, [1, 0, 1]), tf.shape(x), tf.reshape(x, [2, 1]), tf.stack([x, x]), tf.where([True, False], x, x[::-1]))


@case
def placeholders(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3), "x")
    u = b.ph(b.normal(2, 3), "unranked", shape=None)
    p = b.ph(b.normal(4, 3), "partial", shape=[None, 3])
    fed = tf.placeholder_with_default(tf.constant([1.0, 2.0]), [None], name="fed")
    b.feed(fed, np.array([5.0, 6.0, 7.0], np.float32))
    unfed = tf.placeholder_with_default(tf.constant([[1, 2]]), [1, 2], name="unfed")
    middle = tf.identity(x * 100.0, name="middle")
    b.feed(middle, b.normal(2, 3))
    b.out(tf.identity(x), u + 1.0, tf.shape(u), p * 2.0, fed * 3.0, unfed + 1, middle + 1.0, tf.identity(unfed))


@case
def identities(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(3), "x"), b.ph(np.array([1, 2]), "y")
    b.out(tf.identity_n([x, y]), tf.stop_gradient(x), tf.identity(y), tf.zeros_like(y), tf.ones_like(x))
    first, second = tf.tuple([x + 1.0, x * 2.0])
    with tf.control_dependencies([first, tf.no_op()]):
        b.out(tf.identity(second), tf.constant(4.0))
    grouped = tf.group(first.op, second.op, name="all")
    with tf.control_dependencies([grouped]):
        b.out(tf.identity(y, name="after"))
    b.out(first, second, tf.check_numerics(x, "x is bad"))


@case(dynamic=True)
def gradient_stops(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3), "x")
    y = tf.stop_gradient(x * 2.0) * x + tf.identity(x) * tf.check_numerics(x, "bad")
    b.grad([y, tf.identity_n([x, y])[0]], x)


@case
def zeros_ones_fill(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([[1, 2, 3]], np.int32), "x")
    n = b.ph(np.array([2, 3], np.int32), "n")
    u = b.ph(b.normal(2, 1), "u", shape=None)
    b.out(
        tf.zeros([2, 3]), tf.ones([2], tf.int64), tf.zeros([]), tf.zeros([0, 2]), tf.zeros([2], tf.bool), tf.ones([1], tf.bool)
    )
    b.out(tf.zeros_like(x), tf.ones_like(x), tf.zeros_like(x, tf.float32), tf.ones_like(x, dtype=tf.float64), tf.zeros_like(u))
    b.out(tf.fill([2, 2], 7), tf.fill(n, 1.5), tf.zeros(n), tf.ones(n, tf.int32), tf.zeros([2], tf.string), tf.fill([2], "s"))
    b.out(tf.ones_like(x, optimize=False), tf.zeros_like(u, optimize=False), tf.zeros(tf.shape(u)), tf.fill([0], 3))


# --- elementwise, one argument -------------------------------------------------------------------------------------

SMOOTH = "negative abs sign exp expm1 square sin cos tan atan sinh cosh asinh erf erfc tanh sigmoid"
POSITIVE = "log log1p sqrt rsqrt reciprocal lgamma"
UNIT = "asin acos atanh"
ACTIVATIONS = "relu relu6 elu selu leaky_relu softplus softsign"
ROUNDING = "floor ceil round rint"


def _unary(tf: Any, names: str) -> list[Any]:
    return [(name, getattr(tf, name, None) or getattr(tf.nn, name)) for name in words(names)]


@case
def unary(tf: Any, b: Builder) -> None:
    x = b.ph(np.concatenate([b.normal(7) * 2, [0.0, 1.0, -1.0]]).astype(np.float32), "x")
    p = b.ph(np.abs(b.normal(6) * 3).astype(np.float32) + 0.05, "p")
    u = b.ph(np.array([-0.9, -0.3, 0.0, 0.5, 0.99], np.float32), "u")
    c = b.ph(np.array([1.0, 1.5, 30.0], np.float32), "c")
    r = b.ph(np.array([-2.5, -1.5, -0.5, -0.2, 0.0, 0.5, 1.5, 2.5, 2.7, 1e9], np.float32), "r")
    b.out([f(x, name=n) for n, f in _unary(tf, SMOOTH)], [f(p, name=n) for n, f in _unary(tf, POSITIVE)])
    b.out([f(u, name=n) for n, f in _unary(tf, UNIT)], tf.acosh(c), [f(r, name=n) for n, f in _unary(tf, ROUNDING)])
    b.out([f(x * 4.0, name=n) for n, f in _unary(tf, ACTIVATIONS)], tf.nn.leaky_relu(x, alpha=0.3), tf.log_sigmoid(x))
    b.out(tf.lgamma(x - 0.3), tf.digamma(x - 0.3), tf.digamma(p), -x, abs(x), tf.nn.crelu(x))


@case
def unary_float64(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(6, dtype=np.float64), "x")
    p = b.ph(np.abs(b.normal(6, dtype=np.float64)) + 0.1, "p")
    b.out(
        [f(x) for _, f in _unary(tf, SMOOTH)], [f(p) for _, f in _unary(tf, POSITIVE)], [f(x) for _, f in _unary(tf, ROUNDING)]
    )
    b.out([f(x) for _, f in _unary(tf, ACTIVATIONS)])
    b.scale = 100.0  # TensorFlow's own polynomial approximations: 1e-8 off in float64


@case
def unary_float16(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(6, dtype=np.float16), "x")
    p = b.ph(np.abs(b.normal(6, dtype=np.float16)) + np.float16(0.5), "p")
    b.out(
        [f(x) for _, f in _unary(tf, SMOOTH)],
        [f(p) for _, f in _unary(tf, POSITIVE)],
        [f(x) for _, f in _unary(tf, "floor ceil round")],
    )
    b.out([f(x) for _, f in _unary(tf, ACTIVATIONS)])


@case
def unary_int(tf: Any, b: Builder) -> None:
    for dtype in (np.int8, np.int32, np.int64):
        x = b.ph(np.array([-100, -3, 0, 1, 7], dtype))
        b.out(tf.negative(x), tf.abs(x), tf.sign(x), tf.square(x), tf.nn.relu(x))
    b.out(tf.nn.relu6(x), tf.round(x))
    b.out(tf.logical_not(b.ph(np.array([True, False]), "flag")))


@case
def unary_special_values(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 100.0, -100.0], np.float32), "x")
    b.out([f(x, name=n) for n, f in _unary(tf, "is_nan is_inf is_finite negative abs sign exp expm1 log log1p sqrt rsqrt")])
    b.out(
        [f(x, name=n) for n, f in _unary(tf, "square reciprocal tanh sigmoid relu relu6 elu selu softplus softsign erf erfc")]
    )
    b.out([f(x, name=n) for n, f in _unary(tf, ROUNDING + " atan sinh cosh asinh asin acos atanh")], tf.nn.leaky_relu(x))


@case
def unary_old_names(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(4), "x")
    g = b.ph(b.normal(4), "g")
    b.out(b.raw("Inv", x=x), b.raw("Reciprocal", x=x), b.raw("Snapshot", input=x), b.raw("PreventGradient", input=x))
    b.out(b.raw("Neg", x=x), b.raw("OnesLike", x=x), b.raw("ZerosLike", x=x), b.raw("GuaranteeConst", input=tf.constant(2.0)))
    for name in words("InvGrad ReciprocalGrad SqrtGrad RsqrtGrad SigmoidGrad TanhGrad"):
        b.out(b.raw(name, y=x, dy=g, name=name))
    for name in words("ReluGrad Relu6Grad LeakyReluGrad SoftplusGrad SoftsignGrad"):
        b.out(b.raw(name, features=x, gradients=g, name=name))
    b.out(b.raw("EluGrad", outputs=x, gradients=g), b.raw("SeluGrad", outputs=x, gradients=g))
    b.out(b.raw("LeakyReluGrad", features=x, gradients=g, alpha=0.5))


@case(dynamic=True)
def grad_unary_smooth(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(5), "x")
    b.grad([f(x, name=n) for n, f in _unary(tf, SMOOTH)], x)


@case
def grad_unary_each(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(5) * 2, "x")
    p = b.ph(np.abs(b.normal(5)) + np.float32(0.4), "p")
    u = b.ph(np.array([-0.8, 0.1, 0.6], np.float32), "u")
    ys = [f(x) for _, f in _unary(tf, SMOOTH + " " + ACTIVATIONS + " log_sigmoid")]
    b.out([tf.gradients(y, x, name=f"g{i}")[0] for i, y in enumerate(ys)])
    b.out([tf.gradients(f(p), p)[0] for _, f in _unary(tf, POSITIVE)], [tf.gradients(f(u), u)[0] for _, f in _unary(tf, UNIT)])
    b.out(tf.gradients(tf.acosh(p + 1.0), p)[0], tf.gradients(tf.nn.leaky_relu(x, 0.3), x)[0])


@case(dynamic=True)
def grad_unary_positive(tf: Any, b: Builder) -> None:
    p = b.ph(np.abs(b.normal(5)) + np.float32(0.4), "p")
    u = b.ph(np.array([-0.8, 0.1, 0.6], np.float32), "u")
    b.grad([f(p, name=n) for n, f in _unary(tf, POSITIVE)] + [f(u, name=n) for n, f in _unary(tf, UNIT)], [p, u])


@case(dynamic=True)
def grad_activations(tf: Any, b: Builder) -> None:
    x = b.ph(np.concatenate([b.normal(6) * 4, [0.0]]).astype(np.float32), "x")
    b.grad([f(x, name=n) for n, f in _unary(tf, ACTIVATIONS)] + [tf.nn.leaky_relu(x, 0.3), tf.nn.crelu(x)], x)


@case
def grad_digamma(tf: Any, b: Builder) -> None:
    p = b.ph(np.abs(b.normal(5)) + np.float32(0.4), "p")
    b.grad(tf.digamma(p), p)


@case
def grad_second_order(tf: Any, b: Builder) -> None:
    x = b.ph(np.abs(b.normal(4)) + np.float32(0.3), "x")
    for name, f in _unary(tf, "tanh sigmoid softplus elu relu square sqrt rsqrt reciprocal exp log sin selu leaky_relu"):
        first = tf.gradients(f(x) * x, x, name=name)[0]
        b.out(first, tf.gradients(first, x, name=name + "2")[0])
    w = b.ph(b.normal(4, 3), "w")
    z = tf.nn.softmax(tf.matmul(tf.reshape(x, [1, 4]), w))
    first = tf.gradients(z[0, 1], w)[0]
    b.out(first, tf.gradients(tf.reduce_sum(first * first), w)[0])


# --- elementwise, two arguments ------------------------------------------------------------------------------------

BINARY = "add subtract multiply divide maximum minimum squared_difference div_no_nan atan2 floordiv mod realdiv"


@case
def binary_float(tf: Any, b: Builder) -> None:
    x = b.ph(np.concatenate([b.normal(5) * 3, [0.0]]).reshape(2, 1, 3).astype(np.float32), "x")
    y = b.ph(np.concatenate([b.normal(11), [2.0]]).reshape(4, 3).astype(np.float32) + np.float32(0.01), "y")
    b.out(
        [f(x, y, name=n) for n, f in _unary(tf, BINARY + " truncatemod")], tf.pow(tf.abs(x), y), tf.pow(x, 2.0), tf.pow(x, 3.0)
    )
    b.out(tf.xdivy(x, y) if hasattr(tf, "xdivy") else tf.math.xdivy(x, y), tf.math.xlogy(x, tf.abs(y)))
    b.out(tf.div(x, y), tf.truediv(x, y), x + y, x - y, x * y, x / y, x // y, x % y, x**2.0, 2.0 * x, 1.0 - x, 3.0 / y)


@case
def binary_old_names(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3) * 3, "x"), b.ph(b.normal(3) + np.float32(0.01), "y")
    for name in words(
        "Add AddV2 Sub Mul Div RealDiv FloorDiv Mod FloorMod TruncateMod Pow Maximum Minimum MulNoNan Xdivy Atan2"
    ):
        b.out(b.raw(name, x=x, y=y, name=name))
    i, j = b.ph(np.array([7, -7, 7, -7, 0, 5], np.int32), "i"), b.ph(np.array([2, 2, -2, -2, 3, 5], np.int32), "j")
    for name in words("Add AddV2 Sub Mul Div TruncateDiv FloorDiv Mod FloorMod TruncateMod Maximum Minimum SquaredDifference"):
        b.out(b.raw(name, x=i, y=j, name=name + "Int"))


@case
def binary_int(tf: Any, b: Builder) -> None:
    for dtype in (np.int32, np.int64):
        x = b.ph(np.array([7, -7, 7, -7, 0, 6, 100], dtype))
        y = b.ph(np.array([2, 2, -2, -2, 3, 3, 100], dtype))
        b.out(x + y, x - y, x * y, x // y, x % y, tf.maximum(x, y), tf.minimum(x, y), tf.squared_difference(x, y))
        b.out(tf.truncatediv(x, y), tf.truncatemod(x, y), tf.div(x, y), tf.mod(x, y), tf.truediv(x, y))
    x, y = b.ph(np.array([7, -7, 100, -100], np.int8)), b.ph(np.array([2, -2, 100, 100], np.int8))
    b.out(x + y, x - y, x * y, x // y, tf.truncatediv(x, y))
    u, v = b.ph(np.array([250, 3, 9], np.uint8), "u"), b.ph(np.array([10, 5, 4], np.uint8), "v")
    b.out(u + v, u - v, u * v, u // v, tf.maximum(u, v))
    b.out(tf.pow(b.ph(np.array([-2, 0, 3], np.int32), "base"), b.ph(np.array([3, 0, 4], np.int32), "power")))


@case
def binary_int_errors(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, y = b.ph(np.array([1, 2], np.int32), "x"), b.ph(np.array([1, 0], np.int32), "y")
    for f in (tf.floordiv, tf.floormod):
        b.run(fetch=[f(x, y)], error="InvalidArgumentError")
    b.run(fetch=[tf.pow(x, -x)], error="InvalidArgumentError")
    b.run(fetch=[x + y])


@case
def binary_special_values(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([0.0, 1.0, -1.0, np.inf, np.nan, 0.0, -0.0, 5.0, -5.0, np.inf], np.float32), "x")
    y = b.ph(np.array([0.0, 0.0, 0.0, np.inf, 1.0, np.nan, 1.0, np.inf, np.inf, 2.0], np.float32), "y")
    b.out(
        [
            f(x, y, name=n)
            for n, f in _unary(tf, "add subtract multiply divide div_no_nan maximum minimum atan2 floordiv mod pow")
        ]
    )
    b.out(tf.math.xlogy(x, y), tf.math.xdivy(x, y), tf.less(x, y), tf.equal(x, y), tf.not_equal(x, y), tf.greater_equal(x, y))


@case
def binary_broadcast_shapes(tf: Any, b: Builder) -> None:
    pairs = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 3), ()), ((4, 1, 2), (3, 1)),
             ((0, 3), (1, 3)), ((1,), (1,)), ((1, 1), (3,)), ((2, 0), (1,)), ((), ()),
             ((2, 1, 2, 1), (1, 3, 1, 4))]  # fmt: skip
    for left, right in pairs:
        b.out(b.ph(b.normal(*left)) + b.ph(b.normal(*right)))
    for left, right in (
        ([None, 3], [4, 1]),
        ([None], [None, 1]),
        ([None, 1], [2, 5]),
        ([None], []),
        (None, [3]),
        ([None, 3], [None, 3]),
    ):
        x, y = tf.placeholder(tf.float32, left), tf.placeholder(tf.float32, right)
        tf.multiply(x, y, name="only_its_static_shape_counts")


@case
def broadcast_gradient_args(tf: Any, b: Builder) -> None:
    pairs = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3)), ((4, 1, 2), (3, 1)), ((0, 3), (1, 3)),
             ((1,), (1,)), ((1, 1), (3,)), ((1, 2, 1), (1, 1)), ((), ()), ((1, 3), (3,)), ((5, 1, 1), (1, 1)),
             ((1, 1, 2), (2,)), ((2, 1, 3), (2, 1, 1)), ((1,), ()), ((1, 2), (1, 2))]  # fmt: skip
    for left, right in pairs:
        for swap in (left, right), (right, left):
            s0, s1 = (b.ph(np.array(s, np.int32)) for s in swap)
            b.out(list(b.raw("BroadcastGradientArgs", s0=s0, s1=s1)))
    b.out(b.raw("BroadcastArgs", s0=np.array([2, 1], np.int32), s1=np.array([3], np.int32)))


@case(dynamic=True)
def grad_binary_broadcast(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 1, 3) + np.float32(3), "x"), b.ph(np.abs(b.normal(4, 3)) + np.float32(0.5), "y")
    names = "add subtract multiply divide maximum minimum squared_difference div_no_nan atan2 pow floordiv mod realdiv"
    b.grad([f(x, y, name=n) for n, f in _unary(tf, names)] + [tf.math.xlogy(x, y), tf.math.xdivy(x, y), tf.div(x, y)], [x, y])


@case(dynamic=True)
def grad_binary_same_shape(tf: Any, b: Builder) -> None:
    x, y = b.ph(np.abs(b.normal(2, 3)) + np.float32(0.5), "x"), b.ph(np.abs(b.normal(2, 3)) + np.float32(0.5), "y")
    names = "add subtract multiply divide maximum minimum squared_difference pow"
    b.grad([f(x, y, name=n) for n, f in _unary(tf, names)], [x, y])


@case(dynamic=True)
def grad_binary_scalars(tf: Any, b: Builder) -> None:
    x, s = b.ph(np.abs(b.normal(2, 3)) + np.float32(0.5), "x"), b.ph(np.float32(1.7), "s")
    b.grad(
        [x + s, s - x, x * s, s / x, x**s, s**x, x**2.0, tf.maximum(x, s), x * 2.0, 1.0 - x, tf.squared_difference(s, x)],
        [x, s],
    )


@case
def grad_binary_each(tf: Any, b: Builder) -> None:
    x, y = b.ph(np.abs(b.normal(2, 1)) + np.float32(0.5), "x"), b.ph(np.abs(b.normal(3)) + np.float32(0.5), "y")
    for _, f in _unary(tf, "add subtract multiply divide maximum minimum squared_difference div_no_nan atan2 pow realdiv"):
        b.out(list(tf.gradients(f(x, y), [x, y])))
    b.out(list(tf.gradients(tf.math.xlogy(x, y), [x, y])), list(tf.gradients(tf.math.xdivy(x, y), [x, y])))
    z = b.ph(np.array([0.0, 1.0, 0.0], np.float32), "z")
    b.out(
        list(tf.gradients(tf.pow(z, 2.0), z)),
        list(tf.gradients(tf.pow(z, z), z)),
        list(tf.gradients(tf.div_no_nan(y, z), [y, z])),
    )
    b.out(list(tf.gradients(tf.math.xlogy(z, y), [z, y])), list(tf.gradients(tf.sqrt(z), z)), list(tf.gradients(tf.abs(z), z)))
    b.out(
        list(tf.gradients(tf.maximum(z, z), z)), list(tf.gradients(tf.maximum(z, 1.0), z)), list(tf.gradients(tf.nn.relu(z), z))
    )


@case
def comparisons(tf: Any, b: Builder) -> None:
    for x, y in (
        (np.array([[1.0], [2.0]], np.float32), np.array([1.0, 2.0, 3.0], np.float32)),
        (np.array([1, 2, 3], np.int32), np.array([3, 2, 1], np.int32)),
        (np.array([1, 2, 3], np.int64), np.array(2, np.int64)),
    ):
        left, right = b.ph(x), b.ph(y)
        for _, f in _unary(tf, "less less_equal greater greater_equal equal not_equal"):
            b.out(f(left, right))
        b.out(left < right, left <= right, left > right, left >= right)
    p, q = b.ph(np.array([[True, False]]).T, "p"), b.ph(np.array([True, False]), "q")
    b.out(tf.logical_and(p, q), tf.logical_or(p, q), tf.logical_xor(p, q), tf.logical_not(p), p & q, p | q, ~p, p ^ q)
    b.out(tf.equal(p, q), tf.not_equal(p, q))


@case
def comparisons_raw(tf: Any, b: Builder) -> None:
    x, y = b.ph(np.array([1.0, 2.0, 3.0], np.float32), "x"), b.ph(np.array([1.000001, 2.1, 3.0], np.float32), "y")
    b.out(b.raw("ApproximateEqual", x=x, y=y), b.raw("ApproximateEqual", x=x, y=y, tolerance=0.5))
    b.out(b.raw("Equal", x=x, y=tf.constant([1.0, 2.0]), incompatible_shape_error=False))
    b.out(b.raw("NotEqual", x=x, y=tf.constant([1.0, 2.0]), incompatible_shape_error=False))


@case(dynamic=True)
def add_n_and_fan_out(tf: Any, b: Builder) -> None:
    x, y, z = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3), "y"), b.ph(b.normal(2, 3), "z")
    i = b.ph(np.array([1, 2], np.int32), "i")
    total = tf.add_n([x, y, z, x])
    b.out(tf.add_n([i, i]), tf.add_n([x]), tf.accumulate_n([x, y]))
    b.grad(total * x + total * y, [x, y, z])


@case
def complex_numbers(tf: Any, b: Builder) -> None:
    x = b.ph((b.normal(3) + 1j * b.normal(3)).astype(np.complex64), "x")
    y = b.ph((b.normal(3) + 1j * b.normal(3)).astype(np.complex64), "y")
    b.out(x + y, x - y, x * y, x / y, -x, tf.square(x), tf.exp(x), tf.reduce_sum(x), tf.equal(x, y), tf.abs(x), tf.conj(x))
    b.out(tf.real(x), tf.imag(x), tf.complex(tf.real(x), tf.imag(y)), tf.cast(tf.real(x), tf.complex64))


# --- matmul --------------------------------------------------------------------------------------------------------


@case
def matmul(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(3, 4), "y")
    xt, yt = b.ph(b.normal(3, 2), "xt"), b.ph(b.normal(4, 3), "yt")
    b.out(tf.matmul(x, y), tf.matmul(xt, y, transpose_a=True), tf.matmul(x, yt, transpose_b=True))
    b.out(tf.matmul(xt, yt, transpose_a=True, transpose_b=True), tf.matmul(xt, yt, adjoint_a=True, adjoint_b=True))
    i = b.ph(np.arange(6, dtype=np.int32).reshape(2, 3), "i")
    d = b.ph(b.normal(3, 3, dtype=np.float64), "d")
    b.out(
        tf.matmul(i, i, transpose_b=True),
        tf.matmul(d, d),
        tf.matmul(b.ph(np.zeros([2, 0], np.float32)), b.ph(np.zeros([0, 3], np.float32))),
    )
    b.out(tf.matmul(tf.cast(x, tf.float16), tf.cast(y, tf.float16)), tf.matmul(b.ph(np.zeros([0, 3], np.float32)), y), x @ y)
    tf.matmul(tf.placeholder(tf.float32, [None, 3]), tf.placeholder(tf.float32, [None, 4]), name="static_shape")


@case
def batch_matmul(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 1, 2, 3), "x"), b.ph(b.normal(4, 3, 2), "y")
    b.out(
        tf.matmul(x, y),
        tf.matmul(x, x, transpose_b=True),
        tf.matmul(x, x, adjoint_a=True),
        tf.matmul(y, x, transpose_a=True, transpose_b=True),
    )
    b.out(tf.matmul(b.ph(np.zeros([0, 2, 3], np.float32)), b.ph(np.zeros([0, 3, 1], np.float32))))
    tf.matmul(tf.placeholder(tf.float32, [None, 2, 3]), tf.placeholder(tf.float32, [None, 3, None]), name="static_shape")
    tf.matmul(tf.placeholder(tf.float32, [None, 2, 3]), tf.placeholder(tf.float32, None), name="unranked")


@case
def batch_matmul_raw(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 2, 3), "x"), b.ph(b.normal(2, 3, 2), "y")
    b.out(
        b.raw("BatchMatMul", x=x, y=y),
        b.raw("BatchMatMul", x=x, y=y, adj_x=True, adj_y=True),
        b.raw("BatchMatMulV2", x=x, y=x, adj_y=True),
    )


@case(dynamic=True)
def grad_matmul(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(3, 4), "y")
    xt, yt = b.ph(b.normal(3, 2), "xt"), b.ph(b.normal(4, 3), "yt")
    ys = [
        tf.matmul(x, y),
        tf.matmul(xt, y, transpose_a=True),
        tf.matmul(x, yt, transpose_b=True),
        tf.matmul(xt, yt, True, True),
    ]
    b.grad(ys, [x, y, xt, yt])


@case(dynamic=True)
def grad_batch_matmul(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 1, 2, 3), "x"), b.ph(b.normal(4, 3, 2), "y")
    z = b.ph(b.normal(2, 1, 3, 2), "z")
    b.grad([tf.matmul(x, y), tf.matmul(x, z), tf.matmul(y, x, transpose_a=True, transpose_b=True),
            tf.matmul(z, x, adjoint_a=True, adjoint_b=True), tf.matmul(x, x, adjoint_b=True),
            tf.matmul(y, z, adjoint_a=True)], [x, y, z])  # fmt: skip


# --- reductions ----------------------------------------------------------------------------------------------------

REDUCE = "reduce_sum reduce_mean reduce_prod reduce_max reduce_min"


@case
def reductions(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3, 4), "x")
    for _, f in _unary(tf, REDUCE):
        b.out(
            f(x), f(x, 0), f(x, -1), f(x, [0, 2]), f(x, [0, -1], keepdims=True), f(x, []), f(x, keepdims=True), f(x, [2, 1, 0])
        )
        b.out(f(x, tf.constant([1], tf.int64)))
    b.out(
        tf.reduce_logsumexp(x),
        tf.reduce_logsumexp(x, 1, keepdims=True),
        tf.count_nonzero(tf.round(x), 1),
        tf.math.reduce_variance(x, 0),
    )
    b.out(tf.math.reduce_std(x, [0, 1]))
    i = b.ph(np.array([[1, -2, 4], [-3, 5, -6]], np.int32), "i")
    for _, f in _unary(tf, REDUCE):
        b.out(f(i), f(i, 1), f(i, 0))
    q = b.ph(np.array([[True, False, True], [True, True, True]]), "q")
    b.out(tf.reduce_all(q), tf.reduce_any(q), tf.reduce_all(q, 1), tf.reduce_any(q, 0, keepdims=True), tf.reduce_all(q, []))


@case
def euclidean_norms(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3, 4), "x")
    b.out(tf.math.reduce_euclidean_norm(x), tf.math.reduce_euclidean_norm(x, [0, -1], keepdims=True))


@case
def reductions_empty(tf: Any, b: Builder) -> None:
    x = b.ph(np.zeros([0, 3], np.float32), "x")
    for _, f in _unary(tf, REDUCE):
        b.out(f(x), f(x, 0), f(x, 1))
    q = b.ph(np.zeros([0, 2], np.bool_), "q")
    b.out(tf.reduce_all(q), tf.reduce_any(q), tf.reduce_all(q, 0), tf.reduce_sum(b.ph(np.float32(3.0), "scalar")))
    i = b.ph(np.zeros([0], np.int32), "i")
    b.out(tf.reduce_max(i), tf.reduce_min(i), tf.reduce_sum(i), tf.reduce_prod(i))


@case
def reductions_dynamic_axes(tf: Any, b: Builder) -> None:
    x, a, u = (
        b.ph(b.normal(2, 3, 4), "x"),
        b.ph(np.array([0, -1], np.int32), "a", shape=[None]),
        b.ph(b.normal(2, 3), "u", shape=None),
    )
    one = b.ph(np.int32(1), "one")
    b.out(
        tf.reduce_sum(x, a),
        tf.reduce_mean(x, a, keepdims=True),
        tf.reduce_max(x, one),
        tf.reduce_sum(u),
        tf.reduce_sum(u, 0),
        tf.reduce_prod(u, -1),
    )
    b.out(list(tf.gradients(tf.square(tf.reduce_sum(x, a)), x)), list(tf.gradients(tf.square(tf.reduce_mean(u, 0)), u)))
    b.out(list(tf.gradients(tf.square(tf.reduce_max(u, -1)), u)))


@case
def reductions_bad_axis(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, a = b.ph(b.normal(2, 3), "x"), b.ph(np.array([2], np.int32), "a", shape=[None])
    b.run(fetch=[tf.reduce_sum(x, a)], error="InvalidArgumentError")
    twice = b.ph(np.array([0, 0], np.int32), "twice", shape=[None])
    b.run(fetch=[tf.reduce_sum(x, twice)], error="InvalidArgumentError")
    b.run(fetch=[tf.argmax(x, b.ph(np.int32(-3), "axis"))], error="InvalidArgumentError")


@case(dynamic=True)
def grad_reductions(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3, 4), "x")
    b.grad(
        [
            tf.reduce_sum(x),
            tf.reduce_sum(x, 1),
            tf.reduce_sum(x, [0, -1]),
            tf.reduce_sum(x, 2, keepdims=True),
            tf.reduce_sum(x, []),
        ],
        x,
    )
    b.grad([tf.reduce_mean(x), tf.reduce_mean(x, 1), tf.reduce_mean(x, [0, -1], keepdims=True)], x)


@case(dynamic=True)
def grad_reduce_max_min(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]], np.float32), "x")
    b.grad(
        [
            tf.reduce_max(x),
            tf.reduce_max(x, 1),
            tf.reduce_min(x, 0, keepdims=True),
            tf.reduce_min(x),
            tf.reduce_logsumexp(x, 1),
        ],
        x,
    )


@case(dynamic=True)
def grad_reduce_prod(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([[1.0, 3.0, 0.5], [2.0, 0.0, 4.0]], np.float32), "x")
    b.grad([tf.reduce_prod(x), tf.reduce_prod(x, 1), tf.reduce_prod(x, [0], keepdims=True), tf.reduce_prod(x, [0, 1])], x)


@case
def arg_reductions(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]], np.float32), "x")
    i = b.ph(np.array([[[5, 1], [5, 9]]], np.int32), "i")
    for f in (tf.argmax, tf.argmin):
        b.out(f(x), f(x, 0), f(x, 1), f(x, -1), f(x, 1, output_type=tf.int32), f(i, 2), f(i, axis=1), f(i, -3))
    tf.argmax(tf.placeholder(tf.float32, [None, 3]), 1, name="static_shape")
    tf.argmax(tf.placeholder(tf.float32, [None, 3]), tf.placeholder(tf.int32, []), name="static_shape_of_unknown_axis")


@case
def cumulative(tf: Any, b: Builder) -> None:
    x, i = b.ph(b.normal(2, 4), "x"), b.ph(np.array([1, 2, 3, 4], np.int32), "i")
    for f in (tf.cumsum, tf.cumprod):
        for exclusive in (False, True):
            for reverse in (False, True):
                b.out(f(x, 1, exclusive=exclusive, reverse=reverse), f(i, exclusive=exclusive, reverse=reverse))
        b.out(f(x, -2), f(x), f(x, tf.constant(1, tf.int64)))


@case(dynamic=True)
def grad_cumulative(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 4) + np.float32(2), "x")
    ys = [tf.cumsum(x, 1), tf.cumsum(x, 0, exclusive=True), tf.cumsum(x, 1, reverse=True), tf.cumsum(x, -1, True, True)]
    b.grad(ys + [tf.cumprod(x, 1), tf.cumprod(x, 1, exclusive=True), tf.cumprod(x, 0, reverse=True)], x)


@case
def casts(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([-2.9, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 2.9, 100.7], np.float32), "x")
    i = b.ph(np.array([-300, -1, 0, 1, 127, 128, 255, 256, 70000], np.int32), "i")
    q = b.ph(np.array([True, False]), "q")
    n = b.ph(np.array([np.nan, np.inf, 0.0, -0.0], np.float32), "n")
    names = words("float16 float32 float64 int8 int16 int32 int64 bool complex64")
    b.out([tf.cast(x, getattr(tf, t)) for t in names], [tf.cast(i, getattr(tf, t)) for t in names[1:] + ["uint8", "uint16"]])
    b.out(
        [tf.cast(q, getattr(tf, t)) for t in names],
        tf.cast(n, tf.bool),
        tf.cast(tf.abs(x), tf.uint8),
        tf.to_float(i),
        tf.to_int32(x),
    )
    b.out(
        tf.cast(tf.constant(2**40 + 5, tf.int64), tf.int32),
        tf.to_double(x),
        tf.to_int64(x),
        tf.saturate_cast(i, tf.uint8),
        tf.saturate_cast(x, tf.int8),
    )
    b.out(
        tf.cast(tf.constant(1.00000001, tf.float64), tf.float32),
        tf.cast(tf.constant(70000.0), tf.float16),
        tf.bitcast(x, tf.int32),
    )


@case(dynamic=True)
def grad_cast(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(3), "x")
    b.grad([tf.cast(x, tf.float64), tf.cast(tf.cast(x, tf.float64) * 2.0, tf.float32)], x)


@case
def clipping_and_norms(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3) * 3, "x"), b.ph(b.normal(4), "y")
    b.out(
        tf.clip_by_value(x, -1.0, 1.5),
        tf.clip_by_norm(x, 2.0),
        tf.clip_by_norm(x, 2.0, axes=[1]),
        tf.clip_by_average_norm(x, 0.1),
    )
    clipped, norm = tf.clip_by_global_norm([x, None, y], 1.5)
    b.out(
        clipped[0],
        clipped[2],
        norm,
        tf.global_norm([x, y]),
        tf.norm(x),
        tf.norm(x, axis=1),
        tf.norm(x, ord=1),
        tf.norm(x, np.inf, axis=0),
    )
    b.out(tf.nn.l2_normalize(x, 1), tf.nn.l2_loss(x), tf.clip_by_value(x, x - 1.0, 0.5))


@case
def clip_by_value_raw(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3) * 3, "x")
    b.out(b.raw("ClipByValue", t=x, clip_value_min=-1.0, clip_value_max=0.5))


@case(dynamic=True)
def grad_clipping_and_norms(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3) * 3, "x"), b.ph(b.normal(4), "y")
    clipped, norm = tf.clip_by_global_norm([x, y], 1.5)
    b.grad(
        [
            tf.clip_by_value(x, -1.0, 1.5),
            tf.clip_by_norm(x, 2.0),
            clipped[0],
            clipped[1],
            norm,
            tf.nn.l2_normalize(x, 1),
            tf.nn.l2_loss(y),
        ],
        [x, y],
    )


@case
def moments(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(4, 2, 3), "x")
    mean, variance = tf.nn.moments(x, [0, 1])
    b.out(
        mean,
        variance,
        list(tf.nn.moments(x, [2], keep_dims=True)),
        tf.nn.batch_normalization(x, mean, variance, 0.5, 2.0, 1e-3),
    )
    b.out(list(tf.nn.sufficient_statistics(x, [0])[:3]), tf.nn.zero_fraction(tf.nn.relu(x)))


@case(dynamic=True)
def grad_moments(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(4, 3), "x")
    mean, variance = tf.nn.moments(x, [0])
    b.grad([mean, variance, tf.nn.batch_normalization(x, mean, variance, None, None, 1e-3)], x)
