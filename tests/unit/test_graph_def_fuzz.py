"""Graphs with something broken in them: ``import_graph_def`` takes them or refuses them with an error of its kind.

300 graphs, the same ones each time: copies of one graph of many operation types with one to three changes.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import mpirt as tf

NAMES = ["", "^x", "x:0", "x:7", "x:-1", "nope", "w", "a" * 5000, "w:0:1", "^", "/", "x:99999999999999999999", "\u00e9"]
DEVICES = ["/job:nope", "garbage", "/cpu:99", "/job:worker/task:-1", "/" * 100]
ENUMS = [0, 1, 3, 7, 19, 20, 100, 9999]


@cache
def exported() -> bytes:
    with tf.Graph().as_default() as graph:
        with tf.device("/job:worker"):
            x = tf.placeholder(tf.float32, [None, 4], name="x")
            w = tf.get_variable("w", initializer=np.ones((4, 3), np.float32))
            hidden = tf.nn.dropout(tf.nn.relu(tf.matmul(x, w)[:, ::2]), keep_prob=0.5)
            loss = tf.reduce_mean(tf.concat([hidden, hidden], 1))
            rows = tf.nn.embedding_lookup([w, w], tf.constant([0, 1, 3]))
            padded = tf.pad(tf.reshape(tf.transpose(rows), [-1, 3]), [[1, 1], [0, 0]])
            tf.unstack(tf.stack(tf.split(tf.tile(padded, [2, 1]), 3, 1)))
            logits = tf.random_normal([2, 3])
            tf.nn.softmax_cross_entropy_with_logits_v2(labels=tf.one_hot([1, 2], 3), logits=logits)
            tf.Print(loss, [tf.constant(["a", "b"]), tf.range(3), tf.argmax(logits, 1)])
        tf.train.AdamOptimizer().minimize(loss + tf.reduce_sum(rows))
        message: bytes = graph.as_graph_def().SerializeToString()
    return message


def mutated(r: random.Random) -> Any:
    graph_def = tf.GraphDef()
    graph_def.ParseFromString(exported())
    for _ in range(r.randint(1, 3)):
        r.choice(CHANGES)(r, graph_def, r.choice(graph_def.node))
    return graph_def


def an_input(r: random.Random, graph_def: Any) -> str:
    name: str = r.choice(NAMES + [node.name for node in graph_def.node])
    return name


def change_type(r: random.Random, graph_def: Any, node: Any) -> None:
    node.op = r.choice([n.op for n in graph_def.node] + ["Nope", ""])


def change_input(r: random.Random, graph_def: Any, node: Any) -> None:
    if node.input:
        node.input[r.randrange(len(node.input))] = an_input(r, graph_def)


def drop_input(r: random.Random, graph_def: Any, node: Any) -> None:
    if node.input:
        del node.input[r.randrange(len(node.input))]


def add_input(r: random.Random, graph_def: Any, node: Any) -> None:
    node.input.append(an_input(r, graph_def))


def change_device(r: random.Random, graph_def: Any, node: Any) -> None:
    node.device = r.choice(DEVICES)


def rename(r: random.Random, graph_def: Any, node: Any) -> None:
    node.name = an_input(r, graph_def)


def drop_attribute(r: random.Random, graph_def: Any, node: Any) -> None:
    if node.attr:
        del node.attr[r.choice(sorted(node.attr))]


def change_attribute(r: random.Random, graph_def: Any, node: Any) -> None:
    attr = node.attr[r.choice(sorted(node.attr) or ["T"])]
    attr.Clear()
    kind = r.randrange(8)
    if kind == 0:
        attr.i = r.choice([-1, 0, 1, 2**31, 2**62, -(2**63)])
    elif kind == 1:
        attr.s = r.choice([b"", b"\xff\xfe", b"loc:@nope"])
    elif kind == 2:
        attr.type = r.choice(ENUMS)
    elif kind == 3:
        attr.shape.dim.add(size=r.choice([-5, -1, 0, 2**40]))
    elif kind == 4:
        attr.list.i.extend([r.randint(-9, 9)] * r.randint(0, 4))
    elif kind == 5:
        attr.f = r.choice([float("nan"), float("inf"), -1.0])
    elif kind == 6:
        attr.b = True
    else:
        attr.list.type.append(r.choice(ENUMS))


def take_attribute_of_another(r: random.Random, graph_def: Any, node: Any) -> None:
    other = r.choice(graph_def.node)
    if node.attr and other.attr:
        node.attr[r.choice(sorted(node.attr))].CopyFrom(other.attr[r.choice(sorted(other.attr))])


def add_attribute(r: random.Random, graph_def: Any, node: Any) -> None:
    node.attr[r.choice(["_class", "_x", "T", "zz", "_output_shapes"])].SetInParent()


def change_constant(r: random.Random, graph_def: Any, node: Any) -> None:
    tensor = r.choice([n for n in graph_def.node if n.op == "Const"] or [node]).attr["value"].tensor
    kind = r.randrange(7)
    if kind == 0:
        tensor.tensor_content = r.randbytes(r.choice([0, 1, 3, 4, 8, 64]))
    elif kind == 1:
        tensor.dtype = r.choice(ENUMS)
    elif kind == 2:
        tensor.tensor_shape.dim.add(size=r.choice([-1, 0, 1, 5, 2**40, 2**62]))
    elif kind == 3 and tensor.tensor_shape.dim:
        tensor.tensor_shape.dim[0].size = r.choice([-1, 0, 3, 2**33])
    elif kind == 4:
        tensor.int_val.extend([2**31 - 1, -(2**31)] * 3)
    elif kind == 5:
        tensor.tensor_shape.unknown_rank = True
    else:
        tensor.tensor_shape.Clear()


def duplicate(r: random.Random, graph_def: Any, node: Any) -> None:
    graph_def.node.add().CopyFrom(node)


def remove(r: random.Random, graph_def: Any, node: Any) -> None:
    graph_def.node.remove(node)


CHANGES: list[Callable[[random.Random, Any, Any], None]] = [
    change_type, change_input, drop_input, add_input, change_device, rename, drop_attribute, change_attribute,
    take_attribute_of_another, add_attribute, change_constant, duplicate, remove,
]  # fmt: skip


def test_the_graph_itself_imports() -> None:
    graph_def = tf.GraphDef()
    graph_def.ParseFromString(exported())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        assert graph.version == len(graph_def.node) > 100


@pytest.mark.parametrize("hundred", [0, 1, 2])
def test_a_broken_graph_is_refused_with_an_error_of_its_kind(hundred: int) -> None:
    ends: Counter[str] = Counter()
    for seed in range(hundred * 100, hundred * 100 + 100):
        graph_def = mutated(random.Random(seed))
        with tf.Graph().as_default() as graph:
            try:
                tf.import_graph_def(graph_def)
            except (tf.errors.OpError, ValueError, TypeError):
                ends["refused"] += 1
            except Exception as error:
                raise AssertionError(f"graph {seed} ended in {error!r}") from error
            else:
                graph.as_graph_def()  # what was taken can be written again
                ends["taken"] += 1
    assert ends["refused"] > 50 and ends["taken"] > 5, ends
