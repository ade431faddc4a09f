"""Questions about variable scopes, sharing, slices and containers that TensorFlow and mpirt must answer alike.

A question is a function of ``tf`` that uses only names of tensorflow.compat.v1 and gives plain JSON: names, shapes,
attributes, members of collections, values, or the class of an exception. Each is asked in a graph of its own.

Owns: the questions. TensorFlow's answers are in tf/scopes.json (make_tf_golden.py); test_tf_scopes.py compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Question = Callable[[Any], Any]

QUESTIONS: dict[str, Question] = {}


def question(ask: Question) -> Question:
    """Register a question under its function's name."""
    assert ask.__name__ not in QUESTIONS, ask.__name__
    QUESTIONS[ask.__name__] = ask
    return ask


def answers(tf: Any) -> dict[str, Any]:
    """What ``tf`` answers to all questions."""
    return {name: answer(tf, name) for name in QUESTIONS}


def answer(tf: Any, name: str) -> Any:
    """What ``tf`` answers to one question."""
    with tf.Graph().as_default():
        return QUESTIONS[name](tf)


def refused(function: Callable[[], Any]) -> str:
    """The class of what ``function`` raises, or what it gives."""
    try:
        return f"gave {describe(function())}"
    except Exception as error:  # any class is an answer
        return type(error).__name__


def describe(found: Any) -> Any:
    """Name, type and shape of a variable; of one in slices also the names of these."""
    if hasattr(found, "_get_variable_list"):
        return [found.name, found.dtype.base_dtype.name, found.shape.as_list(), [v.name for v in found]]
    if isinstance(found, list):
        return [describe(v) for v in found]
    return [found.name, found.dtype.base_dtype.name, found.shape.as_list()] if hasattr(found, "dtype") else str(found)


def values(tf: Any, *fetches: Any) -> Any:
    """Values after all variables were initialised."""
    with tf.Session() as session:
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        return [np.asarray(v).tolist() for v in session.run(list(fetches))]


def collections(tf: Any) -> dict[str, list[str]]:
    """Names of the members of the collections of variables and of regularization losses."""
    keys = ("GLOBAL_VARIABLES", "LOCAL_VARIABLES", "TRAINABLE_VARIABLES", "REGULARIZATION_LOSSES")
    found = {key: [v.name for v in tf.get_collection(getattr(tf.GraphKeys, key))] for key in keys}
    return {key: names for key, names in found.items() if names}


def scope_of(tf: Any, scope: Any) -> list[Any]:
    """What there is to see of an open scope."""
    return [scope.name, scope.original_name_scope, tf.constant(0, name="op").name, str(scope.reuse)]


# ------------------------------------------------------------------------------------------------------ reuse modes


@question
def reuse_in_every_mode_of_what_is_there_and_what_is_not(tf: Any) -> Any:
    tf.get_variable("there", [2])
    found = {}
    for mode in (None, False, True, tf.AUTO_REUSE):
        for name in ("there", f"not_there_{getattr(mode, 'name', mode)}"):

            def ask(mode: Any = mode, name: str = name) -> Any:
                with tf.variable_scope("", reuse=mode):
                    return tf.get_variable(name, [2])

            found[f"{mode} {name}"] = refused(ask)
    return found


@question
def what_must_agree_with_the_variable_that_is_shared(tf: Any) -> Any:
    tf.get_variable("v", [2, 3])
    asked = {
        "nothing": {},
        "same": {"shape": [2, 3]},
        "partly known": {"shape": [None, 3]},
        "unknown": {"shape": None},
        "other size": {"shape": [3, 3]},
        "other ndim": {"shape": [2]},
        "other dtype": {"dtype": tf.float64},
        "other integer dtype": {"dtype": tf.int32},
        "trainable": {"trainable": False},
        "other initializer": {"initializer": tf.ones_initializer()},
        "a fitting value": {"initializer": np.zeros((2, 3), np.float32)},
        "an unfitting value": {"initializer": np.zeros((3, 3), np.float32)},
    }
    found = {}
    with tf.variable_scope("", reuse=True):
        for how, arguments in asked.items():
            found[how] = refused(lambda a=arguments: tf.get_variable("v", **a))
    return found


@question
def reuse_is_inherited(tf: Any) -> Any:
    found = []
    for outer in (None, False, True, tf.AUTO_REUSE):
        for inner in (None, False, True, tf.AUTO_REUSE):
            with tf.variable_scope("a", reuse=outer), tf.variable_scope("b", reuse=inner) as scope:
                found.append([str(outer), str(inner), str(scope.reuse)])
    return found


@question
def reuse_of_a_scope_that_is_entered_by_object(tf: Any) -> Any:
    found = []
    for of_object in (None, True, tf.AUTO_REUSE):
        for asked in (None, False, True, tf.AUTO_REUSE):
            for around in (None, True):
                with tf.variable_scope("a", reuse=of_object) as scope:
                    pass
                with tf.variable_scope("x", reuse=around), tf.variable_scope(scope, reuse=asked) as again:
                    found.append([str(of_object), str(asked), str(around), str(again.reuse)])
    return found


@question
def reuse_variables_holds_from_there_to_the_end_of_the_scope(tf: Any) -> Any:
    with tf.variable_scope("a") as scope:
        v = tf.get_variable("v", [1])
        with tf.variable_scope("inner") as before:
            scope.reuse_variables()
            seen = [str(scope.reuse), str(before.reuse), tf.get_variable("w", [1]).name]
        seen += [tf.get_variable("v", [1]) is v, refused(lambda: tf.get_variable("new", [1]))]
        with tf.variable_scope("inner") as after:
            seen += [str(after.reuse), tf.get_variable("w", [1]).name]
    with tf.variable_scope("a") as again:
        seen += [str(again.reuse)]
    tf.get_variable_scope().reuse_variables()
    return [*seen, refused(lambda: tf.get_variable("x", [1])), str(tf.get_variable_scope().reuse)]


@question
def a_variable_made_by_its_class_gets_a_name_of_its_own_and_is_not_shared(tf: Any) -> Any:
    with tf.variable_scope("a", reuse=tf.AUTO_REUSE):
        first, second = tf.Variable(1.0, name="v"), tf.Variable(1.0, name="v")
        third = tf.get_variable("v", [])
        fourth = tf.get_variable("v", [])
    return [describe(first), describe(second), describe(third), third is fourth]


# ------------------------------------------------------------------------------------------------------- scope names


@question
def names_in_nested_scopes_that_are_entered_again(tf: Any) -> Any:
    seen = []
    with tf.variable_scope("a") as a:
        seen.append(scope_of(tf, a))
        with tf.variable_scope("b") as b:
            seen.append([*scope_of(tf, b), tf.get_variable("v", [1]).name])
        with tf.variable_scope(a) as again:
            seen.append([*scope_of(tf, again), tf.get_variable("v", [1]).name])
    with tf.variable_scope("c"):
        with tf.variable_scope(b) as jumped:
            seen.append([*scope_of(tf, jumped), tf.get_variable("w", [1]).name])
            with tf.variable_scope("d") as inside:
                seen.append([*scope_of(tf, inside), tf.get_variable("v", [1]).name])
        with tf.variable_scope(None, default_name="e") as e:
            seen.append(scope_of(tf, e))
        with tf.variable_scope(None, default_name="e") as e:
            seen.append(scope_of(tf, e))
    with tf.variable_scope(b, auxiliary_name_scope=False) as quiet:
        seen.append([*scope_of(tf, quiet), tf.get_variable("x", [1]).name])
    with tf.variable_scope(b, auxiliary_name_scope=False) as quiet, tf.name_scope(quiet.original_name_scope):
        seen.append([*scope_of(tf, quiet), tf.get_variable("y", [1]).name])
    with tf.name_scope("n"), tf.variable_scope("a/b") as slashed:
        seen.append([*scope_of(tf, slashed), tf.get_variable("z", [1]).name])
    with tf.variable_scope("a/") as trailing:
        seen.append(scope_of(tf, trailing))
    return seen


@question
def scopes_of_defaults_that_are_asked_by_name_and_by_default_name(tf: Any) -> Any:
    seen = []
    for _ in range(2):
        with tf.variable_scope(None, "layer") as scope:
            seen.append(scope_of(tf, scope))
            with tf.variable_scope(None, "layer") as scope:
                seen.append(scope_of(tf, scope))
    with tf.variable_scope("named", "layer") as scope:
        seen.append(scope_of(tf, scope))
    with tf.variable_op_scope([tf.constant(1.0)], None, "layer") as scope:
        seen.append(scope_of(tf, scope))
    with tf.variable_op_scope([tf.constant(1.0)], "named", "layer", reuse=tf.AUTO_REUSE) as scope:
        seen.append(scope_of(tf, scope))
    return seen


@question
def operations_that_a_variable_is_made_of(tf: Any) -> Any:
    with tf.name_scope("outer"), tf.variable_scope("a", regularizer=tf.nn.l2_loss):
        tf.get_variable("v", [2], initializer=tf.ones_initializer(), use_resource=False)
    kept = ("VariableV2", "Assign", "L2Loss")
    ops = [op for op in tf.get_default_graph().get_operations() if op.type in kept and op.name.startswith("a/")]
    return [[op.name, op.type, [c.decode() for c in op.colocation_groups()]] for op in ops]


# ---------------------------------------------------------------------------------------------------- scope defaults


@question
def defaults_of_scopes_and_how_inner_ones_win(tf: Any) -> Any:
    seen = {}
    with tf.variable_scope("a", initializer=tf.constant_initializer(1.0), dtype=tf.float64, regularizer=tf.nn.l2_loss):
        seen["outer"] = tf.get_variable("v", [2])
        with tf.variable_scope("b", initializer=tf.constant_initializer(2.0)):
            seen["inner"] = tf.get_variable("v", [2])
            seen["own"] = tf.get_variable("w", [2], initializer=tf.constant_initializer(3.0), dtype=tf.float32)
        with tf.variable_scope("c") as scope:
            scope.set_initializer(tf.constant_initializer(4.0))
            scope.set_dtype(tf.float32)
            scope.set_regularizer(None)
            seen["set"] = tf.get_variable("v", [2])
        with tf.variable_scope("d", regularizer=tf.no_regularizer):
            seen["unregularized"] = tf.get_variable("v", [2])
        seen["after"] = tf.get_variable("z", [2])
    return {
        "variables": {key: describe(v) for key, v in seen.items()},
        "values": dict(zip(seen, values(tf, *seen.values()), strict=True)),
        **collections(tf),
    }


@question
def a_scope_entered_again_by_object_keeps_its_defaults(tf: Any) -> Any:
    with tf.variable_scope("a", initializer=tf.constant_initializer(1.0), regularizer=tf.nn.l2_loss) as a:
        pass
    with tf.variable_scope("b", initializer=tf.constant_initializer(2.0)):
        with tf.variable_scope(a):
            inside = tf.get_variable("v", [1])
        with tf.variable_scope(a, initializer=tf.constant_initializer(3.0)):
            changed = tf.get_variable("w", [1])
        outside = tf.get_variable("v", [1])
    return [values(tf, inside, changed, outside), collections(tf)]


@question
def a_shared_variable_is_regularized_once(tf: Any) -> Any:
    for _ in range(2):
        with tf.variable_scope("a", reuse=tf.AUTO_REUSE, regularizer=lambda v: 0.5 * tf.nn.l2_loss(v)):
            tf.get_variable("v", initializer=tf.constant([2.0, 4.0]))
            tf.get_variable("without", [2], regularizer=lambda v: None)
    losses = tf.losses.get_regularization_losses()
    scoped = tf.losses.get_regularization_losses("b")
    total = tf.losses.get_regularization_loss()
    return [len(losses), len(scoped), values(tf, total, tf.losses.get_total_loss())]


@question
def a_caching_device_moves_what_is_read_and_not_the_variable(tf: Any) -> Any:
    with tf.device("/job:ps"), tf.variable_scope("a", caching_device="/job:worker"):
        v = tf.get_variable("v", [1], use_resource=False)
        with tf.variable_scope("b", caching_device=lambda op: "/job:other"):
            w = tf.get_variable("w", [1], use_resource=False)
        own = tf.get_variable("x", [1], caching_device="/job:own", use_resource=False)
    return [[x.device, x.value().device] for x in (v, w, own)]


@question
def custom_getters_of_scopes_and_of_the_call(tf: Any) -> Any:
    calls: list[Any] = []

    def named(who: str) -> Any:
        def wrap(getter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            calls.append([who, name, len(args), sorted(kwargs)])
            return getter(name + who, *args, **kwargs)

        return wrap

    with tf.variable_scope("a", custom_getter=named("_outer")) as a, tf.variable_scope("b", custom_getter=named("_inner")):
        scoped = tf.get_variable("u", [1])
        made = tf.get_variable("v", [1], custom_getter=named("_call"))
    with tf.variable_scope(a, custom_getter=named("_again")):
        again = tf.get_variable("w", [1])

    def by_keyword(**kwargs: Any) -> Any:
        return kwargs.pop("getter")(**{**kwargs, "shape": [7]})

    changed = tf.get_variable("x", [1], custom_getter=by_keyword)
    return [calls, *map(describe, (scoped, made, again, changed))]


@question
def local_variables_and_collections(tf: Any) -> Any:
    tf.get_variable("plain", [1])
    tf.get_variable("frozen", [1], trainable=False)
    tf.get_local_variable("local", [1])
    tf.get_variable("mine", [1], collections=["mine"])
    tf.get_variable("both", [1], collections=[tf.GraphKeys.LOCAL_VARIABLES], trainable=False)
    tf.get_local_variable("more", [1], collections=["mine"])
    tf.Variable(1.0, name="by_class", collections=["mine"], trainable=False)
    return {
        **collections(tf),
        "mine": [v.name for v in tf.get_collection("mine")],
        "local_variables": [v.name for v in tf.local_variables()],
        "global in p": [v.name for v in tf.global_variables("p")],
    }


@question
def get_collection_of_a_scope(tf: Any) -> Any:
    with tf.variable_scope("a") as a:
        tf.get_variable("v", [1])
        tf.get_variable("w", [1], trainable=False)
        tf.get_local_variable("l", [1])
    with tf.variable_scope("ab"):
        tf.get_variable("v", [1])
    found = (a.global_variables(), a.trainable_variables(), a.local_variables(), a.get_collection(tf.GraphKeys.GLOBAL_VARIABLES))
    return [[v.name for v in some] for some in found]


@question
def initial_values_of_every_kind(tf: Any) -> Any:
    made = {
        "value": refused(lambda: tf.get_variable("value", initializer=[1.0, 2.0])),
        "value with shape": refused(lambda: tf.get_variable("value_shape", [2], initializer=[1.0, 2.0])),
        "tensor": refused(lambda: tf.get_variable("tensor", initializer=tf.constant([1, 2]))),
        "tensor and dtype": refused(lambda: tf.get_variable("tensor_dtype", dtype=tf.float32, initializer=tf.constant([1, 2]))),
        "tensor and shape": refused(lambda: tf.get_variable("tensor_shape", [2], initializer=tf.constant([1.0, 2.0]))),
        "numpy": refused(lambda: tf.get_variable("numpy", initializer=np.array([1.0, 2.0]))),
        "int": refused(lambda: tf.get_variable("int", initializer=3)),
        "numpy and dtype": refused(lambda: tf.get_variable("numpy_dtype", dtype=tf.float32, initializer=np.array([1.0]))),
        "list of ints": refused(lambda: tf.get_variable("ints", initializer=[1, 2])),
        "function": refused(lambda: tf.get_variable("function", initializer=lambda: tf.zeros([3]))),
        "function of shape": refused(lambda: tf.get_variable("shaped", [3], initializer=lambda shape, **kw: tf.zeros(shape))),
        "class": refused(lambda: tf.get_variable("class", [3], initializer=tf.zeros_initializer)),
        "nothing": refused(lambda: tf.get_variable("nothing")),
        "unknown shape": refused(lambda: tf.get_variable("unknown", [None])),
        "integer": refused(lambda: tf.get_variable("integer", [2], tf.int32)),
        "bool": refused(lambda: tf.get_variable("bool", [2], tf.bool)),
        "number as shape": refused(lambda: tf.get_variable("number", 3)),
    }
    return made


# ------------------------------------------------------------------------------------------------ variables in slices


@question
def partitioners_on_many_shapes(tf: Any) -> Any:
    shapes = [[1], [7], [10, 4], [2, 4], [1000, 16], [16, 1000], [64, 64, 3]]
    made = {
        **{f"fixed {n} {axis}": tf.fixed_size_partitioner(n, axis) for n in (1, 3, 8) for axis in (0, 1)},
        **{f"min_max {n} {size}": tf.min_max_variable_partitioner(n, 0, size) for n in (1, 4, 100) for size in (64, 16 << 10, 256 << 10)},
        "min_max axis 1": tf.min_max_variable_partitioner(5, 1, 1024),
        **{f"axis_size {size} {most}": tf.variable_axis_size_partitioner(size, 0, 16, most) for size in (64, 10_000) for most in (None, 3)},
        "axis_size axis 1": tf.variable_axis_size_partitioner(200, 1),
    }
    found = {}
    for how, partitioner in made.items():
        for shape in shapes:
            for dtype in (tf.float32, tf.float64, tf.string):
                if "axis_size 64" in how and shape[-1] == 1000 or "axis 1" in how and len(shape) < 2 or how[-1] == "1" and len(shape) < 2:
                    continue  # rows larger than the limit: TensorFlow's own rules, see test_partitioned_variables.py
                found[f"{how} {shape} {dtype.name}"] = [int(n) for n in partitioner(shape=tf.TensorShape(shape), dtype=dtype)]
    return found


@question
def slices_of_a_variable_and_what_is_known_of_them(tf: Any) -> Any:
    seen = []
    for rows, count, axis in ((10, 3, 0), (2, 3, 0), (7, 2, 1), (5, 1, 0)):
        with tf.variable_scope(f"s_{rows}_{count}_{axis}", partitioner=None):
            shape = [rows, 3] if axis == 0 else [3, rows]
            p = tf.get_variable("p", shape, partitioner=tf.fixed_size_partitioner(count, axis))
        infos = [v._get_save_slice_info() for v in p]
        seen.append([describe(p), [v.shape.as_list() for v in p], [i.spec for i in infos], [i.full_name for i in infos]])
    return [seen, collections(tf)]


@question
def a_partitioner_of_a_scope(tf: Any) -> Any:
    with tf.variable_scope("a", partitioner=tf.fixed_size_partitioner(2)) as scope:
        made = [tf.get_variable("v", [4]), tf.get_variable("s", [])]
        with tf.variable_scope("b"):
            made.append(tf.get_variable("v", [4]))
        with tf.variable_scope("c", partitioner=tf.fixed_size_partitioner(4)):
            made.append(tf.get_variable("v", [4]))
        scope.set_partitioner(None)
        made.append(tf.get_variable("w", [4]))
    return [describe(v) for v in made]


@question
def sharing_variables_in_slices(tf: Any) -> Any:
    two, three = tf.fixed_size_partitioner(2), tf.fixed_size_partitioner(3)
    p = tf.get_variable("p", [6, 2], partitioner=two)
    tf.get_variable("w", [6, 2])
    asked = {
        "same": lambda: tf.get_variable("p", [6, 2], partitioner=two),
        "other number": lambda: tf.get_variable("p", [6, 2], partitioner=three),
        "other shape": lambda: tf.get_variable("p", [4, 2], partitioner=two),
        "other dtype": lambda: tf.get_variable("p", [6, 2], tf.int32, partitioner=two),
        "whole of one in slices": lambda: tf.get_variable("w", [6, 2], partitioner=two),
        "missing": lambda: tf.get_variable("q", [6, 2], partitioner=two),
    }
    found: dict[str, Any] = {}
    for mode in (False, True):
        with tf.variable_scope("", reuse=mode):
            found.update({f"{how}, {mode}": refused(ask) for how, ask in asked.items() if not (mode is False and how == "missing")})
    with tf.variable_scope("", reuse=tf.AUTO_REUSE):
        found["the same object"] = tf.get_variable("p", [6, 2], partitioner=two) is p
        found["made"] = describe(tf.get_variable("q", [6, 2], partitioner=two))
    return found


@question
def create_partitioned_variables(tf: Any) -> Any:
    initializer = tf.constant_initializer(3.0)
    first = tf.create_partitioned_variables([6, 2], [3, 1], initializer, name="p")
    second = tf.create_partitioned_variables([6, 3], [1, 3], tf.ones_initializer(), tf.float64, False, ["mine"])
    third = tf.create_partitioned_variables([6, 2], [1, 2], tf.constant(np.arange(12.0).reshape(6, 2)), tf.float64, name="t")
    with tf.variable_scope("a"):
        fourth = tf.create_partitioned_variables([5], [2], tf.ones_initializer(), name="v")
    again = tf.create_partitioned_variables([6, 3], [1, 3], tf.ones_initializer())
    with tf.variable_scope("", reuse=tf.AUTO_REUSE):
        shared = tf.create_partitioned_variables([6, 2], [3, 1], initializer, name="p", reuse=True)
    bad = [refused(lambda s=s: tf.create_partitioned_variables([6, 2], s, initializer)) for s in ([3], [2, 2], [0, 1])]
    made = [describe(list(vs)) for vs in (first, second, third, fourth, again)]
    shapes = [[v._get_save_slice_info().spec for v in vs] for vs in (first, second, third, fourth)]
    mine = [v.name for v in tf.get_collection("mine")]
    return [made, shapes, [a is b for a, b in zip(first, shared, strict=True)], bad, mine, collections(tf), values(tf, *first, *third)]


@question
def a_variable_in_slices_as_a_tensor(tf: Any) -> Any:
    table = np.arange(10.0).reshape(5, 2)
    cuts = {"p": tf.fixed_size_partitioner(3), "q": tf.fixed_size_partitioner(2, axis=1), "one": tf.fixed_size_partitioner(1)}
    p, q, one = (tf.get_variable(name, [5, 2], tf.float64, tf.constant(table), partitioner=cut) for name, cut in cuts.items())
    wholes = [tf.convert_to_tensor(x) for x in (p, q, one)]
    found = values(tf, *wholes, tf.add(p, 1.0), *p, *q)
    return [[w.name for w in wholes], [len(x) for x in (p, q, one)], found]


# -------------------------------------------------------------------------------------------------------- containers


@question
def containers_of_variables(tf: Any) -> Any:
    made = {"outside": tf.get_variable("v0", [1], use_resource=False)}
    with tf.container("c"):
        made["inside"] = tf.get_variable("v1", [1], use_resource=False)
        made["by class"] = tf.Variable(1.0, name="v2", use_resource=False)
        with tf.container("d"):
            made["inner"] = tf.Variable(1.0, name="v3", use_resource=False)
        with tf.container(""):
            made["reset"] = tf.Variable(1.0, name="v4", use_resource=False)
        with tf.device("/job:ps"), tf.variable_scope("s"):
            made["in a scope"] = tf.get_variable("v5", [1], use_resource=False)
            made["in slices"] = list(tf.get_variable("v6", [4], use_resource=False, partitioner=tf.fixed_size_partitioner(2)))[1]
        made["after"] = tf.Variable(1.0, name="v7", use_resource=False)
    with tf.get_default_graph().container("e") as given:
        made["of the graph"] = tf.Variable(1.0, name="v8", use_resource=False)
    return {**{key: str(container_of(v)) for key, v in made.items()}, "given": given}


@question
def slots_are_in_the_container_in_force_when_they_are_made(tf: Any) -> Any:
    with tf.container("c"):
        v = tf.get_variable("v", [2], use_resource=False)
    with tf.container("d"):
        optimizer = tf.train.MomentumOptimizer(0.1, 0.9)
        optimizer.minimize(tf.reduce_sum(v))
    return container_of(optimizer.get_slot(v, "momentum"))


def container_of(variable: Any) -> str:
    """The ``container`` attribute; TensorFlow gives it as bytes."""
    name = variable.op.get_attr("container")
    return name.decode() if isinstance(name, bytes) else str(name)
