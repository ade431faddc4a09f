"""Golden cases of ops that move, select or count elements. See tf_case.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.tf_case import Builder, case

# --- shapes --------------------------------------------------------------------------------------------------------


@case
def shapes_of(tf: Any, b: Builder) -> None:
    x, u = b.ph(b.normal(2, 3), "x", shape=[None, 3]), b.ph(b.normal(2, 3, 1), "u", shape=None)
    b.out(
        tf.shape(x),
        tf.shape(x, out_type=tf.int64),
        tf.size(x),
        tf.size(u, out_type=tf.int64),
        tf.rank(u),
        tf.shape(u),
        tf.rank(x),
    )
    b.out(
        list(tf.shape_n([x, u])),
        list(tf.shape_n([x, x], out_type=tf.int64)),
        tf.shape(x)[0],
        tf.shape(b.ph(np.float32(1), "scalar")),
    )
    b.out(tf.shape(tf.transpose(x)), tf.broadcast_dynamic_shape(tf.shape(x), [4, 1, 1]))


@case
def static_shapes_through_values(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3), "x", shape=[None, 3])
    n = tf.shape(x)[0]
    b.out(tf.reshape(x, [n, 3, 1]), tf.reshape(x, tf.stack([n, 1, 3])), tf.zeros(tf.stack([n, 4])), tf.fill(tf.shape(x), 2.0))
    b.out(
        tf.zeros(tf.concat([tf.shape(x), [2]], 0)),
        tf.tile(x, [1, 2]),
        tf.ones(tf.shape(x)[1:]),
        tf.reshape(x, tf.concat([[-1], [3]], 0)),
    )
    b.out(
        tf.reshape(x, [-1]),
        tf.range(n),
        tf.one_hot(tf.range(n), 3),
        tf.expand_dims(x, -1),
        tf.slice(x, [0, 1], tf.stack([n, 2])),
    )


@case
def reshapes(tf: Any, b: Builder) -> None:
    x, s = b.ph(np.arange(12, dtype=np.float32).reshape(2, 6), "x"), b.ph(np.array([3, -1], np.int32), "s")
    b.out(
        tf.reshape(x, [3, 4]),
        tf.reshape(x, [-1]),
        tf.reshape(x, [4, -1, 1]),
        tf.reshape(x, s),
        tf.reshape(x, tf.constant([12], tf.int64)),
    )
    e = b.ph(np.zeros([0, 3], np.float32), "e")
    b.out(
        tf.reshape(e, [3, 0]),
        tf.reshape(e, [-1, 3]),
        tf.reshape(b.ph(np.float32(2), "scalar"), []),
        tf.reshape(b.ph(np.ones([1, 1])), []),
    )
    p = tf.placeholder(tf.float32, [None, 6])
    tf.reshape(p, [-1, 2, 3], name="static1"), tf.reshape(p, [2, -1], name="static2")


@case
def reshape_errors(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, s = b.ph(b.normal(2, 3), "x"), b.ph(np.array([4, -1], np.int32), "s", shape=[None])
    b.run(fetch=[tf.reshape(x, s)], error="InvalidArgumentError")
    b.run(fetch=[tf.reshape(x, b.ph(np.array([-1, -1], np.int32), "t", shape=[None]))], error="InvalidArgumentError")


@case
def transposes(tf: Any, b: Builder) -> None:
    x, p = b.ph(b.normal(2, 3, 4), "x"), b.ph(np.array([2, 0, 1], np.int32), "p", shape=[None])
    b.out(tf.transpose(x), tf.transpose(x, [0, 2, 1]), tf.transpose(x, p), tf.transpose(x[0]), tf.matrix_transpose(x))
    b.out(
        tf.transpose(b.ph(np.float32(2), "scalar")), tf.invert_permutation(p), tf.transpose(x, tf.constant([1, 0, 2], tf.int64))
    )
    tf.transpose(tf.placeholder(tf.float32, [None, 3, 5]), [2, 0, 1], name="static")


@case
def expand_and_squeeze(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(1, 3, 1), "x")
    b.out(tf.expand_dims(x, 0), tf.expand_dims(x, -1), tf.expand_dims(x, 2), tf.expand_dims(b.ph(np.float32(2), "scalar"), 0))
    b.out(
        tf.squeeze(x),
        tf.squeeze(x, [0]),
        tf.squeeze(x, [-1]),
        tf.squeeze(x, [0, 2]),
        tf.squeeze(x, axis=0),
        tf.squeeze(x, squeeze_dims=[2]),
    )
    p = tf.placeholder(tf.float32, [None, 1, 3])
    tf.squeeze(p, name="static1"), tf.squeeze(p, [1], name="static2"), tf.squeeze(tf.placeholder(tf.float32), name="static3")
    tf.expand_dims(p, tf.placeholder(tf.int32, []), name="static4")


@case(dynamic=True)
def grad_reshaping(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 1, 3), "x")
    b.grad([tf.reshape(x, [3, -1]), tf.transpose(x), tf.transpose(x, [1, 2, 0]), tf.expand_dims(x, 1), tf.squeeze(x, [1])], x)


# --- joining and splitting -----------------------------------------------------------------------------------------


@case
def concats(tf: Any, b: Builder) -> None:
    x, y, e = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 1), "y"), b.ph(np.zeros([2, 0], np.float32), "e")
    axis = b.ph(np.int32(1), "axis")
    b.out(
        tf.concat([x, y], 1),
        tf.concat([x, y, e], -1),
        tf.concat([x, x], 0),
        tf.concat([x], 0),
        tf.concat([x, y], axis),
        tf.concat([x, x], -2),
    )
    b.out(tf.concat([b.ph(np.array([1, 2])), b.ph(np.array([3]))], 0))
    tf.concat([tf.placeholder(tf.float32, [None, 2]), tf.placeholder(tf.float32, [4, None])], 1, name="static1")
    tf.concat(
        [tf.placeholder(tf.float32, [2, 2]), tf.placeholder(tf.float32, [2, None])],
        tf.placeholder(tf.int32, []),
        name="static2",
    )


@case
def concat_raw(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 1), "y")
    b.out(b.raw("Concat", concat_dim=1, values=[x, y]))
    b.out(
        list(
            b.raw(
                "ConcatOffset",
                concat_dim=1,
                shape=[np.array([2, 3], np.int32), np.array([2, 1], np.int32), np.array([2, 5], np.int32)],
            )
        )
    )
    b.out(list(b.raw("ConcatOffset", concat_dim=-2, shape=[np.array([2, 3], np.int32), np.array([4, 3], np.int32)])))


@case
def concat_errors(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, y = b.ph(b.normal(2, 3), "x", shape=[None, None]), b.ph(b.normal(3, 1), "y", shape=[None, None])
    b.run(fetch=[tf.concat([x, y], 1)], error="InvalidArgumentError")
    b.run(fetch=[tf.stack([x, y])], error="InvalidArgumentError")


@case
def stacks(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3), "y")
    b.out(
        tf.stack([x, y]),
        tf.stack([x, y], 1),
        tf.stack([x, y], -1),
        tf.stack([x]),
        tf.stack([1, 2, 3]),
        tf.stack([b.ph(np.float32(3)), 4.0]),
    )
    b.out(tf.unstack(x), tf.unstack(x, axis=1), tf.unstack(x, axis=-1), tf.unstack(b.ph(b.normal(3), "v", shape=[None]), num=3))
    tf.stack([tf.placeholder(tf.float32, [None, 2]), tf.placeholder(tf.float32, [4, None])], 1, name="static")


@case
def splits(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(4, 6), "x")
    b.out(
        list(tf.split(x, 2)),
        list(tf.split(x, 3, 1)),
        list(tf.split(x, [1, 3, 2], axis=-1)),
        list(tf.split(x, [1, -1], 0)),
        list(tf.split(x, 1, 1)),
    )
    b.out(
        list(tf.split(x, b.ph(np.array([2, 2, 0], np.int32), "sizes"), 0, num=3)),
        list(tf.split(x, [2, 4], b.ph(np.int32(1), "axis"))),
    )
    p = tf.placeholder(tf.float32, [None, 6])
    (
        tf.split(p, 2, 0, name="static1"),
        tf.split(p, 2, 1, name="static2"),
        tf.split(p, [2, 4], 1, name="static3"),
        tf.split(p, [2, 4], 0, name="static4"),
    )


@case(dynamic=True)
def grad_joining(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3), "y")
    parts = list(tf.split(x, 3, 1)) + list(tf.split(y, [1, 2], 1))
    b.grad(
        [tf.concat([x, y, x], 1), tf.concat([x, y], 0), tf.concat([x, y], -1), tf.stack([x, y], 1), tf.stack([y, x], -1)]
        + parts[1:4],
        [x, y],
    )
    b.grad(tf.unstack(x, num=3, axis=1)[::2] + tf.unstack(y, num=2), [x, y])


@case
def grad_concat_partly_known(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x", shape=[None, 3]), b.ph(b.normal(2, 1), "y", shape=[None, 1])
    b.grad([tf.concat([x, y], 1), tf.concat([y, x, y], -1)], [x, y])


# --- slicing -------------------------------------------------------------------------------------------------------


def _slices(tf: Any, x: Any) -> list[Any]:
    """``x`` has shape [3, 4, 5]."""
    return [
        x[0], x[-1], x[1:], x[:-1], x[::2], x[::-1], x[1:3, 2], x[..., 0], x[0, ..., 1:4:2], x[:, 1, :],
        x[tf.newaxis], x[:, tf.newaxis, ..., -1], x[2:0:-1, ::-2], x[-2:, :-2, 3:],
        x[5:], x[1:1], x[:100, -100:], x[..., tf.newaxis], x[0, 1, 2], x[1:, ::2], x[:, :, -1:-6:-3],
        x[..., 1:2, :], x[2, tf.newaxis, 1:, 0, tf.newaxis], x[-1:-10:-1],
    ]  # fmt: skip


@case
def strided_slices(tf: Any, b: Builder) -> None:
    x, u = b.ph(np.arange(60, dtype=np.float32).reshape(3, 4, 5), "x"), b.ph(np.arange(6).reshape(2, 3), "u", shape=None)
    i, j = b.ph(np.int32(1), "i"), b.ph(np.int32(3), "j")
    b.out(
        _slices(tf, x),
        x[i],
        x[i:j],
        x[:, i, ::j],
        x[-i:],
        u[0],
        u[1:, ::2],
        u[..., -1],
        x[tf.constant(1, tf.int64)],
        tf.strided_slice(x, [0, 1], [2, 3]),
    )
    b.out(
        tf.strided_slice(x, [2, 3, 0], [0, 0, 5], [-1, -2, 2]),
        tf.strided_slice(x, [0, 1, 0], [2, 3, 4], [1, 1, 2], begin_mask=2, end_mask=4),
    )
    b.out(
        tf.strided_slice(x, [1], [2], shrink_axis_mask=1),
        tf.strided_slice(x, [0, 1], [0, 2], ellipsis_mask=1),
        tf.shape(x)[1:],
        tf.shape(x)[-1],
    )
    p = tf.placeholder(tf.float32, [None, 4, None])
    for index in (
        0,
        slice(1, None),
        (slice(None), 2),
        (Ellipsis, 0),
        slice(None, None, -1),
        (tf.newaxis, 0, 1),
        (slice(None), slice(1, 3), slice(0, 2)),
    ):
        p[index]
    p[i:j, 1:]


@case
def strided_slice_errors(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, i = b.ph(b.normal(3, 4), "x"), b.ph(np.int32(3), "i")
    b.run(fetch=[x[i]], error="InvalidArgumentError")
    b.run(fetch=[x[:: b.ph(np.int32(0), "stride")]], error="InvalidArgumentError")
    b.run(fetch=[tf.slice(x, [0, i], [1, 2])], error="InvalidArgumentError")


@case
def slices(tf: Any, b: Builder) -> None:
    x = b.ph(np.arange(24, dtype=np.int32).reshape(2, 3, 4), "x")
    begin, size = b.ph(np.array([0, 1, 2], np.int64), "begin"), b.ph(np.array([-1, 1, 2], np.int64), "size")
    b.out(
        tf.slice(x, [0, 1, 2], [2, 1, -1]),
        tf.slice(x, [1, 0, 0], [1, 3, 4]),
        tf.slice(x, begin, size),
        tf.slice(x, [0, 3, 0], [-1, -1, -1]),
    )
    p = tf.placeholder(tf.float32, [None, 3])
    (
        tf.slice(p, [0, 1], [-1, 2], name="static1"),
        tf.slice(p, tf.placeholder(tf.int32, [2]), [2, -1], name="static2"),
        tf.slice(p, [1, 0], [2, -1], name="static3"),
    )


@case(dynamic=True)
def grad_strided_slice(tf: Any, b: Builder) -> None:
    x = b.ph(np.arange(60, dtype=np.float32).reshape(3, 4, 5), "x")
    i = b.ph(np.int32(1), "i")
    pick = _slices(tf, x)
    b.grad([pick[k] for k in (0, 2, 5, 8, 11, 12, 17, 20, 22)] + [x[i], x[:, i:]], x)


@case(dynamic=True)
def grad_slice(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(3, 4), "x")
    b.grad([tf.slice(x, [1, 0], [2, 3]), tf.slice(x, [0, 2], [-1, -1])], x)


# --- gathering and scattering --------------------------------------------------------------------------------------


@case
def gathers(tf: Any, b: Builder) -> None:
    x, i = b.ph(b.normal(4, 3), "x"), b.ph(np.array([[0, 3], [1, 1]], np.int32), "i")
    b.out(
        tf.gather(x, i),
        tf.gather(x, [2, 0]),
        tf.gather(x, 1),
        tf.gather(x, [2, 0, 2], axis=1),
        tf.gather(x, i[:1] * 0 + 2, axis=-1),
        tf.gather(x, tf.constant([3], tf.int64)),
    )
    z, k = b.ph(b.normal(2, 3, 4), "z"), b.ph(np.array([[0, 2], [1, 0]], np.int32), "k")
    b.out(
        tf.gather(z, k, batch_dims=1),
        tf.gather(z, k, axis=2, batch_dims=1),
        tf.gather(z, k, axis=1),
        tf.batch_gather(z, k),
        tf.gather(z, k, axis=-1, batch_dims=1),
    )
    b.out(
        tf.gather_nd(z, [[0, 1], [1, 2]]),
        tf.gather_nd(z, [[[0, 1, 2]], [[1, 2, 3]]]),
        tf.gather_nd(z, [1]),
        tf.gather_nd(z, np.zeros([2, 0], np.int32)),
        tf.gather_nd(x, i % 3),
    )
    b.out(
        tf.gather(x, b.ph(np.zeros([0], np.int32), "none")),
        tf.nn.embedding_lookup(x, i),
        tf.nn.embedding_lookup([x, x * 10.0], [0, 1, 5, 7]),
    )
    b.out(
        tf.nn.embedding_lookup([x, x * 10.0], [0, 1, 5, 7], partition_strategy="div"),
        tf.boolean_mask(x, b.ph(np.array([True, False, True, True]), "mask")),
    )
    p = tf.placeholder(tf.float32, [None, 3])
    (
        tf.gather(p, tf.placeholder(tf.int32, [None, 2]), name="static1"),
        tf.gather(p, [0, 1], axis=1, name="static2"),
        tf.gather_nd(p, tf.placeholder(tf.int32, [5, 1]), name="static3"),
    )


@case
def gather_raw(tf: Any, b: Builder) -> None:
    x, i = b.ph(b.normal(4, 3), "x"), b.ph(np.array([[0, 3], [1, 1]], np.int32), "i")
    b.out(b.raw("Gather", params=x, indices=i), b.raw("GatherV2", params=x, indices=i, axis=tf.constant(0)))
    b.out(b.raw("ScatterNd", indices=np.array([[1], [3], [1]], np.int32), updates=x[:3], shape=np.array([5, 3], np.int32)))


@case
def gather_errors(tf: Any, b: Builder) -> None:
    b.inspect = False
    x, i = b.ph(b.normal(4, 3), "x"), b.ph(np.array([0, 4], np.int32), "i")
    b.run(fetch=[tf.gather(x, i)], error="InvalidArgumentError")
    b.run(fetch=[tf.gather(x, i - 1)], error="InvalidArgumentError")
    b.run(fetch=[tf.gather_nd(x, [i])], error="InvalidArgumentError")


@case(dynamic=True)
def grad_gather(tf: Any, b: Builder) -> None:
    x, i = b.ph(b.normal(4, 3), "x"), b.ph(np.array([[0, 3], [1, 1]], np.int32), "i")
    b.grad(tf.gather(x, i), x)
    b.grad(tf.gather(x, [2, 0, 2], axis=1), x)
    b.grad([tf.gather(x, 1), tf.gather(x, [0, 0]), x * 2.0], x)


@case(dynamic=True)
def grad_gather_more(tf: Any, b: Builder) -> None:
    z, k = b.ph(b.normal(2, 3, 4), "z"), b.ph(np.array([[0, 2], [1, 0]], np.int32), "k")
    b.grad([tf.gather(z, k, batch_dims=1), tf.gather(z, k, axis=1)], z)
    b.grad([tf.gather_nd(z, [[0, 1], [1, 2], [0, 1]]), tf.gather_nd(z, [[1, 2, 3]])], z)
    b.grad([tf.boolean_mask(z, b.ph(np.array([True, False]), "mask"))], z)


@case(dynamic=True)
def grad_embedding_lookup(tf: Any, b: Builder) -> None:
    x, y, ids = b.ph(b.normal(3, 2), "x"), b.ph(b.normal(3, 2), "y"), b.ph(np.array([0, 5, 2, 0, 3], np.int32), "ids")
    b.grad([tf.nn.embedding_lookup([x, y], ids), tf.nn.embedding_lookup(x, [1, 1])], [x, y])


@case
def indexed_slices(tf: Any, b: Builder) -> None:
    x, i = b.ph(b.normal(4, 3), "x"), b.ph(np.array([0, 3, 0], np.int32), "i")
    (g,) = tf.gradients(tf.square(tf.gather(x, i)), x)
    b.out(g.values, g.indices, g.dense_shape)
    (g,) = tf.gradients([tf.square(tf.gather(x, i)), tf.gather(x, [1, 1])], x)
    b.out(g.values, g.indices, tf.convert_to_tensor(g))
    clipped, _ = tf.clip_by_global_norm([g], 0.5)
    b.out(clipped[0].values, clipped[0].indices)


@case
def scatter_functions(tf: Any, b: Builder) -> None:
    i, u = b.ph(np.array([[1], [3], [1]], np.int32), "i"), b.ph(b.normal(3, 2), "u")
    x = b.ph(b.normal(4, 2), "x")
    b.out(
        tf.scatter_nd(i, u, [5, 2]),
        tf.scatter_nd([[0, 1], [1, 0]], [5.0, 7.0], [2, 2]),
        tf.tensor_scatter_add(x, i, u),
        tf.tensor_scatter_sub(x, i, u),
    )
    b.out(tf.tensor_scatter_update(x, i[:2], u[:2]))


@case(dynamic=True)
def grad_scatter_functions(tf: Any, b: Builder) -> None:
    x, u = b.ph(b.normal(4, 2), "x"), b.ph(b.normal(2, 2), "u")
    i = tf.constant([[1], [3]])
    b.grad([tf.scatter_nd(i, u, [5, 2]), tf.tensor_scatter_add(x, i, u), tf.tensor_scatter_update(x, i, u)], [x, u])


@case
def segments(tf: Any, b: Builder) -> None:
    x, s = b.ph(b.normal(5, 2), "x"), b.ph(np.array([0, 0, 2, 2, 3], np.int32), "s")
    for name in ("segment_sum", "segment_mean", "segment_max", "segment_min", "segment_prod"):
        b.out(getattr(tf, name)(x, s))
    t = b.ph(np.array([2, 0, -1, 2, 0], np.int32), "t")
    for name in (
        "unsorted_segment_sum",
        "unsorted_segment_max",
        "unsorted_segment_min",
        "unsorted_segment_prod",
        "unsorted_segment_mean",
    ):
        b.out(getattr(tf, name)(x, t, 4))
    b.out(tf.unsorted_segment_sum(x, b.ph(np.array([[0, 1]] * 5, np.int64), "pairs"), 2), tf.unsorted_segment_sqrt_n(x, t, 3))
    tf.unsorted_segment_sum(tf.placeholder(tf.float32, [None, 3]), tf.placeholder(tf.int32, [None]), 7, name="static")


@case(dynamic=True)
def grad_segments(tf: Any, b: Builder) -> None:
    x, s, t = (
        b.ph(b.normal(5, 2), "x"),
        b.ph(np.array([0, 0, 2, 2, 3], np.int32), "s"),
        b.ph(np.array([2, 0, 1, 2, 0], np.int32), "t"),
    )
    b.grad([tf.segment_sum(x, s), tf.segment_mean(x, s), tf.unsorted_segment_sum(x, t, 4), tf.unsorted_segment_max(x, t, 3)], x)


@case
def dynamic_partitions(tf: Any, b: Builder) -> None:
    x, p = b.ph(b.normal(5, 2), "x"), b.ph(np.array([1, 0, 2, 1, 1], np.int32), "p")
    b.out(tf.dynamic_partition(x, p, 4), tf.dynamic_partition(b.ph(np.arange(4).reshape(2, 2)), [[0, 1], [1, 0]], 2))
    i, j = b.ph(np.array([4, 0], np.int32), "i"), b.ph(np.array([[1, 3], [2, 0]], np.int32), "j")
    left, right = b.ph(b.normal(2, 2), "left"), b.ph(b.normal(2, 2, 2), "right")
    b.out(
        tf.dynamic_stitch([i, j], [left, right]),
        tf.dynamic_stitch([[0, 2], [1]], [[10, 30], [20]]),
        tf.dynamic_stitch([[1], [1]], [[10], [20]]),
    )


@case
def stitch_raw(tf: Any, b: Builder) -> None:
    b.out(
        b.raw(
            "ParallelDynamicStitch",
            indices=[np.array([0, 2], np.int32), np.array([1], np.int32)],
            data=[np.array([10, 30]), np.array([20])],
        )
    )


@case(dynamic=True)
def grad_dynamic_partitions(tf: Any, b: Builder) -> None:
    x, p = b.ph(b.normal(5, 2), "x"), b.ph(np.array([1, 0, 2, 1, 1], np.int32), "p")
    left, right = b.ph(b.normal(2, 2), "left"), b.ph(b.normal(3, 2), "right")
    b.grad(tf.dynamic_partition(x, p, 3)[1:] + [tf.dynamic_stitch([[4, 0], [1, 3, 2]], [left, right])], [x, left, right])


@case
def uniques(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([4, 1, 4, 7, 1, 4], np.int32), "x")
    b.out(
        list(tf.unique(x)),
        list(tf.unique(x, tf.int64)),
        list(tf.unique_with_counts(x)),
        list(tf.setdiff1d(x, [4, 9])),
        tf.unique(b.ph(b.normal(0), "none"))[0],
    )
    b.out(tf.invert_permutation([2, 0, 1]))


@case
def bincounts(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([4, 1, 4, 7, 1, 4], np.int32), "x")
    b.out(tf.bincount(x), tf.bincount(x, minlength=10), tf.bincount(x, maxlength=5))


# --- filling, tiling, padding, selecting ---------------------------------------------------------------------------


@case
def one_hots(tf: Any, b: Builder) -> None:
    i = b.ph(np.array([0, 2, -1, 5], np.int32), "i")
    b.out(
        tf.one_hot(i, 3),
        tf.one_hot(i, 3, axis=0),
        tf.one_hot(i, 3, on_value=5, off_value=-1),
        tf.one_hot(i, 3, True, False),
        tf.one_hot(i, 3, dtype=tf.int64),
    )
    j = b.ph(np.array([[0, 1], [2, 0]], np.int64), "j")
    b.out(
        tf.one_hot(j, 3),
        tf.one_hot(j, 3, axis=1),
        tf.one_hot(j, 3, axis=-1, dtype=tf.float64),
        tf.one_hot(j, b.ph(np.int32(2), "depth")),
        tf.one_hot(1, 3),
    )
    tf.one_hot(tf.placeholder(tf.int32, [None]), 10, name="static")


@case
def tiles_and_pads(tf: Any, b: Builder) -> None:
    x = b.ph(np.arange(6, dtype=np.float32).reshape(2, 3), "x")
    b.out(
        tf.tile(x, [2, 1]),
        tf.tile(x, [1, 3]),
        tf.tile(x, b.ph(np.array([2, 2], np.int64), "m")),
        tf.tile(x, [0, 1]),
        tf.tile(x[0], [2]),
    )
    b.out(
        tf.pad(x, [[1, 0], [0, 2]]),
        tf.pad(x, [[1, 1], [2, 2]], "REFLECT"),
        tf.pad(x, [[1, 2], [0, 3]], "SYMMETRIC"),
        tf.pad(x, [[1, 0], [0, 1]], constant_values=9),
    )
    b.out(
        tf.pad(x, b.ph(np.array([[0, 1], [1, 0]], np.int32), "p")),
        tf.pad(tf.cast(x, tf.int32), [[0, 0], [1, 0]], constant_values=-1),
        tf.pad(x, [[1, 1], [2, 2]], "reflect"),
    )
    q = tf.placeholder(tf.float32, [None, 3])
    (
        tf.pad(q, [[1, 2], [3, 4]], name="static1"),
        tf.tile(q, [2, 2], name="static2"),
        tf.pad(q, tf.placeholder(tf.int32, [2, 2]), name="static3"),
    )


@case(dynamic=True)
def grad_tiles_and_pads(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3), "x")
    b.grad(
        [tf.tile(x, [2, 1]), tf.tile(x, [3, 2]), tf.pad(x, [[1, 0], [0, 2]]), tf.pad(x, [[0, 1], [1, 0]], constant_values=2.0)],
        x,
    )
    b.grad([tf.pad(x, [[1, 1], [2, 2]], "REFLECT"), tf.pad(x, [[1, 2], [0, 3]], "SYMMETRIC"), tf.broadcast_to(x, [4, 2, 3])], x)


@case
def mirror_pad_grad_raw(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(4, 7), "x")
    b.out(b.raw("MirrorPadGrad", input=x, paddings=np.array([[1, 1], [2, 2]], np.int32), mode="REFLECT"))
    b.out(b.raw("MirrorPadGrad", input=x, paddings=np.array([[1, 1], [0, 3]], np.int32), mode="SYMMETRIC"))


@case
def ranges(tf: Any, b: Builder) -> None:
    n, f = b.ph(np.int32(4), "n"), b.ph(np.float32(2.5), "f")
    b.out(
        tf.range(5),
        tf.range(2, 9, 3),
        tf.range(5, 0, -2),
        tf.range(n),
        tf.range(1, n),
        tf.range(0.0, f, 0.5),
        tf.range(1.0),
        tf.range(3, 3),
        tf.range(4, dtype=tf.int64),
    )
    b.out(
        tf.linspace(0.0, 1.0, 5),
        tf.lin_space(1.0, 3.0, 1),
        tf.linspace(f, 10.0, n),
        tf.range(0, 1, 0.25),
        tf.range(5.0, 0.0, -1.5),
    )


@case
def meshgrids(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(3), "x"), b.ph(b.normal(2), "y")
    b.out(
        list(tf.meshgrid(x, y)),
        list(tf.meshgrid(x, y, indexing="ij")),
        tf.diag(x),
        tf.diag_part(tf.diag(y)),
        tf.sequence_mask([1, 3, 0], 4),
    )
    b.out(tf.sequence_mask(b.ph(np.array([2, 1]), "lengths")))


@case
def eyes(tf: Any, b: Builder) -> None:
    b.out(tf.eye(3), tf.eye(2, 3), tf.eye(2, batch_shape=[2], dtype=tf.int32))


@case(dynamic=True)
def grad_diag(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(3), "x")
    b.grad([tf.diag(x), tf.diag_part(tf.diag(x) * 2.0)], x)


@case
def selects(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3), "y")
    c, v = b.ph(np.array([[True, False, True], [False, False, True]]), "c"), b.ph(np.array([True, False]), "v")
    b.out(
        tf.where(c, x, y),
        tf.where(v, x, y),
        tf.where(c),
        tf.where(v),
        tf.where(b.ph(np.bool_(True), "scalar"), x, y),
        tf.where(b.ph(np.array([0.0, 2.0], np.float32), "numbers")),
    )
    b.out(
        tf.where(tf.less(x, 0.0), tf.zeros_like(x), x),
        tf.where_v2(c, x, 0.0),
        tf.where_v2(c[:, :1], x, y[0]),
        tf.where_v2(v, 1, b.ph(np.array([[5], [6]], np.int32))),
    )


@case(dynamic=True)
def grad_selects(tf: Any, b: Builder) -> None:
    x, y = b.ph(b.normal(2, 3), "x"), b.ph(b.normal(2, 3), "y")
    c, v = b.ph(np.array([[True, False, True], [False, False, True]]), "c"), b.ph(np.array([True, False]), "v")
    row = b.ph(b.normal(3), "row")
    b.grad(
        [tf.where(c, x, y), tf.where(v, y, x), tf.where_v2(c, x, row), tf.where_v2(tf.expand_dims(v, 1), row, y)], [x, y, row]
    )


@case
def reverses(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3, 2), "x")
    b.out(
        tf.reverse(x, [0]),
        tf.reverse(x, [1, -1]),
        tf.reverse(x, np.zeros([0], np.int32)),
        tf.reverse(x, b.ph(np.array([-2], np.int64), "axis")),
    )
    b.out(tf.reverse_sequence(x, [1, 3], seq_axis=1, batch_axis=0), tf.reverse_sequence(x, [1, 2, 0], seq_axis=0, batch_axis=1))


@case
def reverse_raw(tf: Any, b: Builder) -> None:
    b.out(b.raw("Reverse", tensor=b.ph(b.normal(2, 3), "x"), dims=np.array([False, True])))


@case(dynamic=True)
def grad_reverses(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 3, 2), "x")
    b.grad([tf.reverse(x, [0, 2]), tf.reverse_sequence(x, [1, 3], seq_axis=1, batch_axis=0)], x)


@case
def broadcasts(tf: Any, b: Builder) -> None:
    x, s = b.ph(b.normal(3, 1), "x"), b.ph(np.array([2, 3, 4], np.int32), "s")
    b.out(
        tf.broadcast_to(x, [3, 2]),
        tf.broadcast_to(x, s),
        tf.broadcast_to(b.ph(np.float32(2), "scalar"), [2]),
        tf.broadcast_to(x, [2, 3, 1]),
    )
    b.out(tf.ensure_shape(x, [None, 1]))


@case
def assertions(tf: Any, b: Builder) -> None:
    b.inspect = False
    c, x = b.ph(np.bool_(True), "c"), b.ph(np.array([1, 2], np.int32), "x")
    with tf.control_dependencies([tf.Assert(c, ["x is", x])]):
        y = x + 1
    b.run(fetch=[y])
    b.run(fetch=[y], feeds={c: np.bool_(False), x: np.array([1, 2], np.int32)}, error="InvalidArgumentError")
    f = b.ph(np.array([1.0, np.nan], np.float32), "f")
    b.run(fetch=[tf.check_numerics(f, "f is bad")], error="InvalidArgumentError")
    b.run(fetch=[tf.check_numerics(f, "f is bad")], feeds={f: np.array([1.0, 2.0], np.float32)})
    b.run(
        fetch=[tf.check_numerics(f, "f is bad")], feeds={f: np.array([1.0, -np.inf], np.float32)}, error="InvalidArgumentError"
    )


@case
def top_ks(tf: Any, b: Builder) -> None:
    x = b.ph(np.array([[1.0, 5.0, 3.0, 5.0], [0.0, -1.0, 0.0, 2.0]], np.float32), "x")
    b.out(
        list(tf.nn.top_k(x, 2)),
        list(tf.nn.top_k(x)),
        list(tf.nn.top_k(x, b.ph(np.int32(3), "k"))),
        list(tf.nn.top_k(x, 4)),
        list(tf.nn.top_k(x[0], 2)),
        list(tf.nn.top_k(tf.cast(x, tf.int32), 2)),
    )
    t = b.ph(np.array([1, 3], np.int32), "t")
    b.out(
        tf.nn.in_top_k(x, t, 1),
        tf.nn.in_top_k(x, t, 2),
        tf.nn.in_top_k(x, tf.constant([3, 0], tf.int64), 2),
        tf.nn.in_top_k(x, [9, -1], 2),
    )
    z = b.ph(np.array([[np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0], [1.0, np.inf, np.nan]], np.float32), "z")
    b.out(
        tf.nn.in_top_k(z, [1, 1, 1], 2),
        tf.nn.in_top_k(z, [0, 0, 2], 2),
        tf.sort(x),
        tf.argsort(x, direction="DESCENDING"),
        tf.sort(x, direction="DESCENDING"),
    )


@case
def top_k_raw(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 4), "x")
    b.out(
        b.raw("InTopK", predictions=x, targets=np.array([1, 3], np.int32), k=2),
        b.raw("InTopKV2", predictions=x, targets=np.array([1, 3], np.int32), k=2),
    )


@case(dynamic=True)
def grad_top_k(tf: Any, b: Builder) -> None:
    x = b.ph(b.normal(2, 4), "x")
    b.grad([tf.nn.top_k(x, 2)[0]], x)


@case(dynamic=True)
def linspaces(tf: Any, b: Builder) -> None:
    """Between tensors: every axis, broadcasting, one number, none, integers."""
    a, z = b.ph(b.normal(2, 3)), b.ph(b.normal(2, 3))
    for axis in (0, 1, 2, -1, -2):
        b.out(tf.linspace(a, z, 4, axis=axis))
    b.out(tf.linspace(a, b.ph(b.normal(3)), 3), tf.linspace(b.ph(np.float32(1)), z, b.ph(np.int32(5)), axis=-1))
    b.out(tf.linspace(a, z, 1), tf.linspace(a, z, 2), tf.linspace(a, z, 0, axis=1), tf.linspace(0, 10, 5))
    b.out(tf.linspace(b.ph(np.int32(2)), 9, 4), tf.linspace(b.ph(np.float64(2)), 9.0, 4), tf.linspace(0.1, 0.7, 7))


@case
def linspace_grads(tf: Any, b: Builder) -> None:
    a, z = b.ph(b.normal(2, 3)), b.ph(b.normal(3))
    b.grad([tf.linspace(a, z, 4, axis=1), tf.linspace(a, z, 1)], [a, z])
