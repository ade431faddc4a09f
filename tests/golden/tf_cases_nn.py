"""Golden cases of neural-network ops, random ops, variables, scatters and training. See tf_case.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.golden.tf_case import CASES, Builder, Case, case

# --- losses and layers ---------------------------------------------------------------------------------------------


@case
def softmaxes(tf: Any, b: Builder) -> None:
    x, z = b.ph(b.normal(2, 4) * 3, "x"), b.ph(b.normal(2, 3, 4), "z")
    for f in (tf.nn.softmax, tf.nn.log_softmax):
        b.out(
            f(x),
            f(z),
            f(x, axis=0),
            f(z, axis=1),
            f(x[0]),
            f(x * 100.0),
            f(tf.cast(x, tf.float64)),
            f(b.ph(np.zeros([0, 3], np.float32))),
        )
    u = b.ph(b.normal(2, 3), "u", shape=[None, None])
    b.out(tf.nn.softmax(u), tf.nn.softmax(u, axis=0), tf.nn.log_softmax(u))


@case(dynamic=True)
def grad_softmaxes(tf: Any, b: Builder) -> None:
    x, z = b.ph(b.normal(2, 4), "x"), b.ph(b.normal(2, 3, 4), "z")
    b.grad(
        [tf.nn.softmax(x), tf.nn.log_softmax(x), tf.nn.softmax(z), tf.nn.softmax(z, axis=1), tf.nn.log_softmax(z, axis=0)],
        [x, z],
    )


@case
def cross_entropies(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(3, 4) * 3, "x")
    labels = b.ph(np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0.1, 0.2, 0.3, 0.4]], np.float32), "labels")
    i, j = b.ph(np.array([0, 3, 1], np.int32), "i"), b.ph(np.array([[0, 3], [1, 1]], np.int64), "j")
    z = b.ph(b.normal(2, 2, 3, dtype=np.float64), "z")
    b.out(
        tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=x),
        tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=x),
    )
    b.out(
        tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=x, axis=0),
        tf.nn.softmax_cross_entropy_with_logits_v2(labels=z, logits=z),
    )
    b.out(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=i, logits=x),
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.minimum(j, 2), logits=z),
    )
    b.out(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.cast(i, tf.int64), logits=x * 50.0))
    b.out(
        tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=x),
        tf.nn.weighted_cross_entropy_with_logits(labels=labels, logits=x, pos_weight=2.0),
    )


@case
def cross_entropy_bad_label(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, i = b.ph(b.normal(2, 3), "x"), b.ph(np.array([0, 3], np.int32), "i")
    b.run(fetch=[tf.nn.sparse_softmax_cross_entropy_with_logits(labels=i, logits=x)], error="InvalidArgumentError")
    b.run(fetch=[tf.nn.sparse_softmax_cross_entropy_with_logits(labels=i - 1, logits=x)], error="InvalidArgumentError")


@case
def cross_entropy_raw(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(3, 4), "x"), b.ph(np.full([3, 4], 0.25, np.float32), "y")
    b.out(
        list(b.raw("SoftmaxCrossEntropyWithLogits", features=x, labels=y)),
        list(b.raw("SoftmaxCrossEntropyWithLogits", features=x, labels=y[:1])),
    )
    b.out(list(b.raw("SparseSoftmaxCrossEntropyWithLogits", features=x, labels=np.array([1, 0, 3], np.int64))))
    b.out(tf.Print(x, [x, y], "seen: ", first_n=1))


@case(dynamic=True)
def grad_cross_entropies(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(3, 4), "x")
    labels = b.ph(np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0.1, 0.2, 0.3, 0.4]], np.float32), "labels")
    i = b.ph(np.array([0, 3, 1], np.int32), "i")
    b.grad(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=x), [x, labels])
    b.grad(
        [
            tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=x),
            tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=x),
        ],
        [x],
    )
    b.grad(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=i, logits=x), x)


@case
def grad_cross_entropy_high_rank(tf: Any, b: Builder) -> None:
    z, j = (
        b.ph(b.normal(2, 2, 3), "z", shape=[None, None, 3]),
        b.ph(np.array([[0, 2], [1, 1]], np.int32), "j", shape=[None, None]),
    )
    y = b.ph(np.full([2, 2, 3], 1 / 3, np.float32), "y", shape=[None, None, 3])
    b.grad(
        [
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=j, logits=z),
            tf.nn.softmax_cross_entropy_with_logits_v2(labels=y, logits=z),
        ],
        z,
    )


@case
def biases(tf: Any, b: Builder) -> None:
    x, z, c, d = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3, 2, 4), "z"), b.ph(b.normal(3), "c"), b.ph(b.normal(4), "d")
    b.out(
        tf.nn.bias_add(x, c),
        tf.nn.bias_add(z, d),
        tf.nn.bias_add(z, c, data_format="NCHW"),
        tf.nn.xw_plus_b(x, tf.transpose(x), [1.0, 2.0]),
        tf.nn.relu_layer(x, tf.transpose(x), [1.0, 2.0]),
    )
    tf.nn.bias_add(tf.placeholder(tf.float32, [None, None]), c, name="static")


@case
def bias_raw(tf: Any, b: Builder) -> None:
    x, z, c = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3, 2), "z"), b.ph(b.normal(3), "c")
    b.out(
        b.raw("BiasAddV1", value=x, bias=c),
        b.raw("BiasAddGrad", out_backprop=z),
        b.raw("BiasAddGrad", out_backprop=z, data_format="NCHW"),
    )


@case(dynamic=True)
def grad_biases(tf: Any, b: Builder) -> None:
    x, z, c, d = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3, 2, 4), "z"), b.ph(b.normal(3), "c"), b.ph(b.normal(4), "d")
    b.grad([tf.nn.bias_add(x, c), tf.nn.bias_add(z, d), tf.nn.bias_add(z, c, data_format="NCHW")], [x, z, c, d])


@case
def ready_made_losses(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(4, 3), "x"), b.ph(b.normal(4, 3), "y")
    i = b.ph(np.array([0, 2, 1, 1], np.int32), "i")
    b.out(
        tf.losses.mean_squared_error(y, x),
        tf.losses.sparse_softmax_cross_entropy(i, x),
        tf.losses.softmax_cross_entropy(tf.one_hot(i, 3), x),
    )
    b.out(tf.losses.get_total_loss(add_regularization_losses=False), tf.losses.absolute_difference(y, x, weights=0.5))


@case
def dropouts(tf: Any, b: Builder) -> None:
    """The random numbers are fed, so that the rest of dropout has an answer."""
    x = b.ph(b.normal(3, 4), "x")
    y = tf.nn.dropout(x, rate=0.4)
    z = tf.nn.dropout(x, keep_prob=0.75, noise_shape=[3, 1])
    for op in tf.get_default_graph().get_operations():
        if op.type == "RandomUniform":
            shape = op.outputs[0].shape.as_list()
            b.feed(op.outputs[0], b.rng.uniform(size=shape).round(3).astype(np.float32))
    b.out(y, z, tf.gradients(y, x)[0], tf.gradients(z, x)[0], tf.nn.dropout(x, rate=0.0))
    b.uses_raw = True  # relies on where TensorFlow puts its random numbers; for the graph, not for the function


@case
def random_shapes(tf: Any, b: Builder) -> None:
    b.inspect = False
    n = b.ph(np.array([50, 3], np.int32), "n")
    for r in (
        tf.random_uniform(n),
        tf.random_uniform([50, 3], 0.0, 1.0, tf.float64),
        tf.random_uniform([7], 0, 5, tf.int32),
        tf.random_uniform([7], 0, 5, tf.int64, seed=3),
    ):
        b.out(
            tf.shape(r), tf.reduce_all(r >= 0), tf.reduce_all(r < 5), tf.cast(tf.floor(tf.cast(r, tf.float32) / 5.0), tf.int32)
        )
    b.out(
        tf.shape(tf.random_normal(n)),
        tf.reduce_all(tf.abs(tf.truncated_normal([100])) < 2.0),
        tf.reduce_all(tf.abs(tf.truncated_normal(n, 5.0, 0.1) - 5.0) < 0.21),
    )
    b.out(
        tf.reduce_sum(tf.random_shuffle(tf.range(10))),
        tf.shape(tf.random_shuffle(tf.zeros(n))),
        tf.shape(tf.random_normal([2], dtype=tf.float64, stddev=2.0)),
    )


@case
def seeds(tf: Any, b: Builder) -> None:
    """Only the exported attributes seed and seed2 and the static shapes matter."""
    b.inspect = False
    tf.set_random_seed(87)
    tf.random_uniform([2], name="graph_seed_only"), tf.random_uniform([2], seed=5, name="both")
    b.out(tf.constant(1))


# --- variables -----------------------------------------------------------------------------------------------------


def _variables(name: str) -> Callable[[Callable[[Any, Builder, bool], None]], None]:
    """Register a case twice: with reference variables and with resource variables."""

    def register(build: Callable[[Any, Builder, bool], None]) -> None:
        for kind, resource in ("ref", False), ("resource", True):
            CASES[f"{name}_{kind}"] = Case(f"{name}_{kind}", lambda tf, b, r=resource: build(tf, b, r), False)

    return register


@_variables("variables")
def _variable_cases(tf: Any, b: Builder, resource: bool) -> None:
    v = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="v", use_resource=resource)
    w = tf.get_variable("scope/w", [3], tf.float32, tf.constant_initializer([1.0, 2.0, 3.0]), use_resource=resource)
    n = tf.Variable(5, name="n", trainable=False, dtype=tf.int64, use_resource=resource)
    copy = tf.Variable(tf.ones([2]) * 2.0, name="copy", use_resource=resource)
    x = b.ph(b.normal(2, 2), "x")
    both = tf.matmul(v, x) + w[:2]
    init = tf.global_variables_initializer()
    b.run(fetch=[v], error="FailedPreconditionError")
    b.run(fetch=[tf.is_variable_initialized(v), tf.is_variable_initialized(n)])
    b.run(targets=[init], init=True)
    b.run(
        fetch=[
            tf.is_variable_initialized(v),
            v,
            w,
            n,
            copy,
            both,
            tf.zeros_like(v),
            tf.shape(w),
            v + 1.0,
            v[0],
            tf.gather(v, [1, 0, 1]),
            tf.identity(v),
            v * v,
        ]
    )
    b.run(fetch=[tf.assign_add(v, x)])
    b.run(fetch=[tf.assign_sub(w, [0.5, 0.5, 0.5])])
    b.run(fetch=[v, w])
    b.run(fetch=[tf.assign(n, 9)])
    b.run(fetch=[n.assign_add(2)])
    b.run(fetch=[n, tf.report_uninitialized_variables()])
    with tf.control_dependencies([v.assign(tf.ones([2, 2]) * 7.0)]):
        after = v.read_value() + 0.0
    b.run(fetch=[after])
    grads = tf.gradients(tf.reduce_sum(tf.square(tf.matmul(v, x))) + tf.reduce_sum(tf.gather(w, [0, 0])), [v, w])
    b.run(fetch=[grads[0], tf.convert_to_tensor(grads[1])])
    b.run(targets=[v.initializer])
    b.run(fetch=[v, n, copy])


@case
def variables_from_variables(tf: Any, b: Builder) -> None:
    """TensorFlow guards both by a conditional on is_variable_initialized (RefSwitch, Merge)."""
    v = tf.Variable([1.0, 2.0], name="v", use_resource=False)
    w = tf.Variable(v.initialized_value() * 2.0, name="w", use_resource=False)
    x = tf.Variable(w.initial_value + 1.0, name="x", use_resource=False)
    b.run(targets=[tf.global_variables_initializer()])
    b.run(fetch=[v, w, x])


@_variables("variable_chain")
def _variable_chain(tf: Any, b: Builder, resource: bool) -> None:
    """Order by control dependencies only: the classic counters and running averages."""
    v = tf.Variable(0.0, name="v", use_resource=resource)
    b.run(targets=[tf.global_variables_initializer()], init=True)
    step = tf.no_op()
    for k in range(1, 4):
        with tf.control_dependencies([step]):
            step = tf.assign(v, v.read_value() * 2.0 + float(k))
    with tf.control_dependencies([step]):
        result = tf.identity(v.read_value())
    b.run(fetch=[result])
    b.run(fetch=[result])
    b.run(fetch=[v])


@_variables("scatters")
def _scatters(tf: Any, b: Builder, resource: bool) -> None:
    start = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    v = tf.Variable(start, name="v", use_resource=resource)
    i, u = b.ph(np.array([3, 0, 3], np.int32), "i"), b.ph(np.abs(b.normal(3, 3)) + np.float32(0.5), "u")
    b.run(targets=[tf.global_variables_initializer()], init=True)
    b.run(fetch=[tf.scatter_add(v, i, u)])
    b.run(fetch=[tf.scatter_sub(v, i, u)])
    b.run(fetch=[tf.scatter_mul(v, i, u)])
    b.run(fetch=[tf.scatter_div(v, i, u)])
    b.run(fetch=[tf.scatter_max(v, i, u * 3.0)])
    b.run(fetch=[tf.scatter_min(v, i, u)])
    b.run(fetch=[tf.scatter_update(v, tf.constant([2, 1], tf.int64), u[:2])])
    b.run(fetch=[tf.scatter_update(v, 0, [7.0, 8.0, 9.0])])
    b.run(fetch=[tf.scatter_add(v, [[0, 1], [1, 1]], tf.ones([2, 2, 3]))])
    b.run(fetch=[tf.scatter_sub(v, [2, 2], 0.5)])
    b.run(fetch=[tf.gather(v, i), v])
    b.run(fetch=[tf.scatter_add(v, i + 1, u)], error="InvalidArgumentError")
    b.run(fetch=[v])


@_variables("scatters_nd")
def _scatters_nd(tf: Any, b: Builder, resource: bool) -> None:
    v = tf.Variable(np.arange(12, dtype=np.float32).reshape(4, 3) + 1, name="v", use_resource=resource)
    b.run(targets=[tf.global_variables_initializer()], init=True)
    b.run(fetch=[tf.scatter_nd_update(v, [[1], [0]], [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])])
    b.run(fetch=[tf.scatter_nd_add(v, [[0, 0], [0, 0], [3, 2]], [1.0, 2.0, 3.0])])
    b.run(fetch=[tf.scatter_nd_sub(v, [[0, 0], [3, 2]], [1.0, 2.0])])
    b.run(fetch=[v])


@case
def variable_raw_ops(tf: Any, b: Builder) -> None:
    h = b.raw("VarHandleOp", dtype=tf.float32, shape=[2], container="", shared_name="h")
    b.uses_raw = True
    b.run(fetch=[b.raw("VarIsInitializedOp", resource=h)])
    b.run(fetch=[b.raw("ReadVariableOp", resource=h, dtype=tf.float32)], error="FailedPreconditionError")
    b.run(targets=[b.raw("AssignVariableOp", resource=h, value=tf.constant([1.0, 2.0]))], init=True)
    read = b.raw("ReadVariableOp", resource=h, dtype=tf.float32)
    b.run(
        fetch=[
            read,
            b.raw("VarIsInitializedOp", resource=h),
            b.raw("VariableShape", input=h),
            b.raw("VariableShape", input=h, out_type=tf.int64),
        ]
    )
    b.run(targets=[b.raw("AssignAddVariableOp", resource=h, value=tf.constant([10.0, 10.0]))])
    b.run(targets=[b.raw("AssignSubVariableOp", resource=h, value=tf.constant([1.0, 0.0]))])
    b.run(fetch=[read, b.raw("ResourceGather", resource=h, indices=np.array([1, 0, 1], np.int32), dtype=tf.float32)])
    b.run(
        targets=[b.raw("ResourceScatterAdd", resource=h, indices=np.array([1, 1], np.int32), updates=tf.constant([1.0, 2.0]))]
    )
    b.run(targets=[b.raw("ResourceScatterSub", resource=h, indices=np.array([0], np.int32), updates=tf.constant([1.0]))])
    b.run(fetch=[read])
    b.run(targets=[b.raw("ResourceScatterUpdate", resource=h, indices=np.array([0], np.int32), updates=tf.constant([-5.0]))])
    b.run(fetch=[read, b.raw("ResourceGatherNd", resource=h, indices=np.array([[1]], np.int32), dtype=tf.float32)])


@case
def variable_old_ops(tf: Any, b: Builder) -> None:
    v = b.raw("VariableV2", shape=[2], dtype=tf.float32)
    old = b.raw("Variable", shape=[2], dtype=tf.float32)
    free = b.raw("VariableV2", shape=None, dtype=tf.float32)
    b.run(fetch=[b.raw("IsVariableInitialized", ref=v)])
    b.run(
        targets=[
            b.raw("Assign", ref=v, value=tf.constant([1.0, 2.0])),
            b.raw("Assign", ref=old, value=tf.constant([3.0, 4.0])),
        ],
        init=True,
    )
    b.run(fetch=[v, old, tf.identity(v)])
    b.run(fetch=[b.raw("AssignAdd", ref=v, value=tf.constant([1.0, 1.0]))])
    b.run(fetch=[b.raw("AssignSub", ref=v, value=tf.constant([0.0, 0.5]), use_locking=True)])
    b.run(fetch=[b.raw("ScatterUpdate", ref=v, indices=np.array([0], np.int32), updates=tf.constant([9.0]), use_locking=False)])
    b.run(fetch=[b.raw("Assign", ref=free, value=tf.constant([[1.0, 2.0, 3.0]]), validate_shape=False)])
    b.run(fetch=[v, free, b.raw("IsVariableInitialized", ref=free)])
    n = b.raw("VariableV2", shape=[], dtype=tf.int32, shared_name="shared")
    b.run(targets=[b.raw("Assign", ref=n, value=1)])
    up = b.raw("CountUpTo", ref=n, limit=3)
    b.run(fetch=[up])
    b.run(fetch=[up])
    b.run(fetch=[up], error="OutOfRangeError")
    b.run(fetch=[b.raw("Add", x=n, y=n)])


@case
def initializers(tf: Any, b: Builder) -> None:
    """Initializers without randomness: values; with randomness: the exported graph's shapes."""
    for name, init in (
        ("z", tf.zeros_initializer()),
        ("o", tf.ones_initializer()),
        ("c", tf.constant_initializer(2.5)),
        ("l", tf.constant_initializer([1, 2, 3, 4])),
    ):
        tf.get_variable(name, [2, 2], initializer=init)
    tf.get_variable("i", initializer=tf.constant([1, 2]))
    b.run(targets=[tf.global_variables_initializer()], init=True)
    b.run(fetch=[v for v in tf.global_variables()])
    for name in ("random_uniform", "random_normal", "truncated_normal", "glorot_uniform", "glorot_normal", "variance_scaling"):
        tf.get_variable(name, [4, 3], initializer=getattr(tf, name + "_initializer")(seed=1))


# --- training ------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda tf: tf.train.GradientDescentOptimizer(0.5),
    "momentum": lambda tf: tf.train.MomentumOptimizer(0.1, 0.9),
    "nesterov": lambda tf: tf.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True),
    "adagrad": lambda tf: tf.train.AdagradOptimizer(0.3),
    "adam": lambda tf: tf.train.AdamOptimizer(0.05),
    "rmsprop": lambda tf: tf.train.RMSPropOptimizer(0.02, momentum=0.5),
    "adadelta": lambda tf: tf.train.AdadeltaOptimizer(0.5, 0.8, 1e-3),
    "ftrl": lambda tf: tf.train.FtrlOptimizer(0.2, -0.4, 0.2, 0.01, 0.1),
    "ftrl_shrinkage": lambda tf: tf.train.FtrlOptimizer(0.2, l2_shrinkage_regularization_strength=0.05, beta=0.3, accum_name="A"),
    "proximal_sgd": lambda tf: tf.train.ProximalGradientDescentOptimizer(0.2, 0.05, 0.1),
    "proximal_adagrad": lambda tf: tf.train.ProximalAdagradOptimizer(0.2, 0.3, 0.05, 0.1),
    "adagrad_da": lambda tf: tf.train.AdagradDAOptimizer(0.3, tf.train.get_or_create_global_step(), 0.2, 0.01, 0.1),
    "rmsprop_centered": lambda tf: tf.train.RMSPropOptimizer(0.02, decay=0.8, epsilon=1e-3, centered=True),
}


def _train(tf: Any, b: Builder, optimizer: Any, loss: Any) -> None:
    """Three steps; the losses, the step counter, then every variable, slots included."""
    step = tf.train.get_or_create_global_step()
    train = optimizer.minimize(loss, global_step=step)
    b.run(targets=[tf.global_variables_initializer()], init=True)
    for _ in range(3):
        b.run(fetch=[loss], targets=[train])
    b.run(fetch=[loss, step, *sorted(tf.global_variables(), key=lambda v: v.name)])
    b.scale = 10.0


def _dense(tf: Any, b: Builder, optimizer: Any, resource: bool) -> None:
    """A net of 5-7-3 whose variables start at fixed numbers."""
    x, labels = b.ph(b.normal(4, 5), "x", shape=[None, 5]), b.ph(np.array([0, 2, 1, 2], np.int32), "labels", shape=[None])
    sizes = (5, 7, 3)
    h = x
    for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        w = tf.get_variable(f"w{k}", initializer=tf.constant(b.normal(n, m) * np.float32(0.3)), use_resource=resource)
        c = tf.get_variable(f"b{k}", [m], initializer=tf.zeros_initializer(), use_resource=resource)
        h = tf.nn.bias_add(tf.matmul(h, w), c)
        h = tf.nn.relu(h) if k == 0 else h
    _train(tf, b, optimizer, tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=h)))


def _sparse(tf: Any, b: Builder, optimizer: Any, resource: bool) -> None:
    """An embedding read with repeated ids, so that its gradient is IndexedSlices with duplicates."""
    ids, target = b.ph(np.array([1, 4, 1, 0, 1], np.int32), "ids", shape=[None]), b.ph(b.normal(5), "target", shape=[None])
    table = tf.get_variable("table", initializer=tf.constant(b.normal(6, 3)), use_resource=resource)
    w = tf.get_variable("w", initializer=tf.constant(b.normal(3, 1)), use_resource=resource)
    y = tf.squeeze(tf.matmul(tf.nn.embedding_lookup(table, ids), w), [1])
    _train(tf, b, optimizer, tf.reduce_mean(tf.square(y - target)))


def _register_training() -> None:
    for name, make in OPTIMIZERS.items():
        for kind, resource in ("ref", False), ("resource", True):
            for net, build in ("dense", _dense), ("sparse", _sparse):
                full = f"train_{name}_{net}_{kind}"
                CASES[full] = Case(full, lambda tf, b, f=build, m=make, r=resource: f(tf, b, m(tf), r), False)


_register_training()


@_variables("train_by_hand")
def _train_by_hand(tf: Any, b: Builder, resource: bool) -> None:
    """compute_gradients, clip by global norm, a decayed rate, apply_gradients; one variable read densely and by rows."""
    table = tf.get_variable("table", initializer=tf.constant(b.normal(4, 2)), use_resource=resource)
    w = tf.get_variable("w", initializer=tf.constant(b.normal(2, 2)), use_resource=resource)
    unused = tf.get_variable("unused", initializer=tf.constant([1.0]), use_resource=resource)
    ids = b.ph(np.array([2, 0, 2], np.int32), "ids")
    rows = tf.matmul(tf.gather(table, ids), w) + tf.nn.embedding_lookup(table, ids + 1)
    loss = tf.nn.l2_loss(rows) + 0.1 * tf.nn.l2_loss(w)
    step = tf.train.create_global_step()
    rate = tf.train.exponential_decay(0.2, step, 2, 0.5, staircase=True)
    optimizer = tf.train.MomentumOptimizer(rate, 0.5)
    pairs = optimizer.compute_gradients(loss, [table, w, unused])
    assert pairs[2][0] is None
    clipped, norm = tf.clip_by_global_norm([g for g, _ in pairs[:2]], 1.0)
    train = optimizer.apply_gradients(list(zip(clipped, [table, w], strict=True)), global_step=step)
    b.run(targets=[tf.global_variables_initializer()], init=True)
    for _ in range(3):
        b.run(fetch=[loss, norm], targets=[train])
    b.run(fetch=[loss, rate, step, table, w, unused])
    b.scale = 10.0


@_variables("train_gates")
def _train_gates(tf: Any, b: Builder, resource: bool) -> None:
    """The three gates of Optimizer, gradients beside their ops, and a train op without a global step."""
    x = b.ph(b.normal(3, 2), "x")
    v = tf.get_variable("v", initializer=tf.constant(b.normal(2, 2)), use_resource=resource)
    loss = tf.reduce_sum(tf.square(tf.matmul(tf.tanh(tf.matmul(x, v)), v)))
    steps = []
    for gate in (tf.train.Optimizer.GATE_NONE, tf.train.Optimizer.GATE_OP, tf.train.Optimizer.GATE_GRAPH):
        optimizer = tf.train.GradientDescentOptimizer(0.01, name=f"gate{gate}")
        steps.append(optimizer.minimize(loss, gate_gradients=gate, colocate_gradients_with_ops=gate == 2))
    b.run(targets=[tf.global_variables_initializer()], init=True)
    for train in steps:
        b.run(targets=[train])
        b.run(fetch=[loss, v])
    b.scale = 10.0


@case
def devices_and_colocation(tf: Any, b: Builder) -> None:
    """Device strings and loc:@ classes survive the export; the answer doesn't depend on them."""
    with tf.device("/cpu:0"):
        x = b.ph(b.normal(2, 2), "x")
        v = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="v", use_resource=False)
    with tf.colocate_with(v), tf.name_scope("beside"):
        y = tf.matmul(x, v)
    b.run(targets=[tf.global_variables_initializer()], init=True)
    b.run(fetch=[y, tf.gradients(y, x, colocate_gradients_with_ops=True)[0]])


# ------------------------------------------------------------------------------------------------------ sharded tables


def _sharded(tf: Any, b: Builder) -> tuple[Any, Any]:
    """A table in three slices, and a lookup with repeated ids, some of one slice only."""
    table = tf.get_variable(
        "table", initializer=tf.constant(b.normal(7, 3)), partitioner=tf.fixed_size_partitioner(3), use_resource=False
    )
    ids = b.ph(np.array([[1, 6, 1], [0, 5, 1]], np.int64), "ids", shape=[None, 3])
    return table, tf.nn.embedding_lookup(table, ids, partition_strategy="div")


@case
def partitioned_variables(tf: Any, b: Builder) -> None:
    """Names, devices and cuts under a device setter. Nothing of it is run: the devices don't exist where the answers are made."""
    b.inspect = False
    with tf.device(tf.train.replica_device_setter(ps_tasks=3)), tf.variable_scope("net"):
        p = tf.get_variable(
            "p", [10, 4], initializer=tf.zeros_initializer(), partitioner=tf.fixed_size_partitioner(4), use_resource=False
        )
        tf.get_variable("q", [5], initializer=tf.ones_initializer(), use_resource=False)
        tf.get_variable(
            "c", [2, 5], initializer=tf.zeros_initializer(), partitioner=tf.fixed_size_partitioner(2, axis=1), use_resource=False
        )
        tf.reduce_sum(tf.convert_to_tensor(p), name="total")
        tf.nn.embedding_lookup(p, [[1, 2], [3, 9]], partition_strategy="div", name="rows")


@case
def sharded_lookup(tf: Any, b: Builder) -> None:
    table, rows = _sharded(tf, b)
    b.run(targets=[tf.global_variables_initializer()], init=True)
    clipped = tf.nn.embedding_lookup(list(table), [0, 6, 3], max_norm=1.0)
    b.run(fetch=[rows, clipped, tf.convert_to_tensor(table), *list(table)])
    b.run(fetch=[tf.nn.embedding_lookup(list(table), [9])], error="InvalidArgumentError")


@case
def sharded_training(tf: Any, b: Builder) -> None:
    """Two optimizers on slices: rows of repeated ids, of some ids, and of none."""
    table, rows = _sharded(tf, b)
    loss = tf.nn.l2_loss(rows - 1.0)
    for optimizer in (tf.train.GradientDescentOptimizer(0.1), tf.train.AdagradOptimizer(0.1)):
        step = optimizer.minimize(loss, var_list=list(table))
        b.run(targets=[tf.global_variables_initializer()])
        for _ in range(2):
            b.run(fetch=[loss], targets=[step])
        b.run(fetch=list(table))
