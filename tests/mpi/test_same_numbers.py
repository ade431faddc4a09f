"""What must not depend on the number of ranks: random numbers, and functions of the script itself, wherever they run."""

from typing import Any

import pytest

RANDOM = """
    import hashlib
    import numpy as np
    import mpirt as tf

    cluster = tf.cluster({"ps": 1, "worker": 3})
    tf.set_random_seed(42)
    made = []
    for task in ("/job:ps/task:0", "/job:worker/task:0", "/job:worker/task:1", "/job:worker/task:2"):
        with tf.device(task):
            made += [
                tf.random_uniform([7]),
                tf.random_normal([5], seed=3),
                tf.truncated_normal([50]),
                tf.random_shuffle(tf.range(20)),
                tf.nn.dropout(tf.ones([40]), keep_prob=0.5),
                tf.random_uniform([6], 0, 100, tf.int64),
                tf.multinomial([[1.0, 2.0, 3.0]], 5),
            ]
            made.append(tf.Variable(tf.random_normal([4]), name="v"))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        steps = [session.run(made) for _ in range(3)]
    for first, second in zip(steps[0], steps[1]):  # streams go on; variables stay
        assert first.tobytes() != second.tobytes() or len(first) == 4
    print("digest", hashlib.sha256(b"".join(value.tobytes() for step in steps for value in step)).hexdigest())
"""


@pytest.mark.one_mpi
def test_random_numbers_are_the_same_on_any_number_of_ranks(mpirun: Any) -> None:
    printed = {n: mpirun(n, RANDOM).stdout.split("\n")[:-1] for n in (None, 1, 3, 4)}
    assert {n: len(lines) for n, lines in printed.items()} == {None: 1, 1: 1, 3: 3, 4: 4}
    (line,) = {line for lines in printed.values() for line in lines}
    assert line.startswith("digest ")


SCRIPT_FUNCTIONS = """
    import os
    import numpy as np
    import mpirt as tf

    cluster = tf.cluster({"ps": 1, "worker": 3})

    def refuse(x):
        raise tf.errors.OutOfRangeError(None, None, "the end of my data")

    with tf.device("/job:worker/task:2"):
        pid = tf.py_func(lambda: np.int64(os.getpid()), [], tf.int64)
        text = tf.py_func(lambda x: b"<" + x + b">", [tf.constant("ab")], tf.string)
        refused = tf.py_func(refuse, [tf.constant(1.0)], tf.float32)
    with tf.device("/job:ps"):
        words = tf.Variable(["x", "yy"], name="words")
        both = tf.stack([words[1], tf.reshape(text, [])])
    with tf.device("/job:worker/task:1"):
        printing = tf.Print(both, [both, tf.constant([1.5, 2.0])], "printed once: ")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(printing).tolist() == [b"yy", b"<ab>"]
        here = session.run(pid) == os.getpid()
        try:
            session.run(refused)
        except tf.errors.OutOfRangeError as error:
            assert error.message == "the end of my data" and error.op is refused.op and error.code == tf.errors.OUT_OF_RANGE
            assert session.run(both).tolist() == [b"yy", b"<ab>"]
            print("rank", cluster.rank, "of", cluster.size, "here" if here else "elsewhere")
"""


@pytest.mark.one_mpi
@pytest.mark.parametrize(("ranks", "runs_on"), [(None, 0), (2, 1), (5, 3)])
def test_functions_of_the_script_and_prints_and_strings_work_on_any_rank(mpirun: Any, ranks: int | None, runs_on: int) -> None:
    result = mpirun(ranks, SCRIPT_FUNCTIONS)
    size = ranks or 1
    where = [f"rank {rank} of {size} {'here' if rank == runs_on else 'elsewhere'}" for rank in range(size)]
    assert sorted(result.stdout.splitlines()) == where
    assert result.stderr.count("printed once: [yy <ab>][1.5 2]") == 1


IMPORTED = """
    import mpirt as tf

    cluster = tf.cluster({"ps": 2, "worker": 2})
    with tf.Graph().as_default() as built:
        with tf.device(tf.train.replica_device_setter(cluster=cluster.spec, worker_device="/job:worker/task:1")):
            x = tf.placeholder(tf.float32, [None, 3], name="x")
            w = tf.get_variable("w", initializer=[[1.0], [2.0], [3.0]])
            b = tf.get_variable("b", initializer=[0.5])
            y = tf.add(tf.matmul(x, w), b, name="y")
            loss = tf.reduce_mean(tf.square(y))
            train = tf.train.GradientDescentOptimizer(0.1).minimize(loss, name="train")
            init = tf.global_variables_initializer()

    def numbers(graph, prefix=""):
        with tf.Session(graph=graph) as session:
            session.run(prefix + init.name)
            feeds = {prefix + "x:0": [[1, 0, 1], [0, 1, 0]]}
            for _ in range(3):
                session.run(prefix + "train", feeds)
            placed = {name[len(prefix):]: device for name, device in session.placement().items()}
            return session.run([prefix + "y:0", prefix + "w:0"], feeds), placed

    message = tf.GraphDef()
    message.ParseFromString(built.as_graph_def().SerializeToString())
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(message, name="again")
    (y1, w1), placed1 = numbers(built)
    (y2, w2), placed2 = numbers(imported, "again/")
    assert y1.tobytes() == y2.tobytes() and w1.tobytes() == w2.tobytes() and placed1 == placed2
    assert placed1["w"].startswith("/job:ps/task:0/") and placed1["b"].startswith("/job:ps/task:1/")
    assert placed1["y"] == "/job:worker/task:1/device:CPU:0"
    print(y1.ravel().tolist())
"""


def test_an_imported_graph_runs_where_its_device_fields_say(mpirun: Any) -> None:
    (alone,) = mpirun(None, IMPORTED).stdout.splitlines()
    assert mpirun(4, IMPORTED).stdout.splitlines() == [alone] * 4
