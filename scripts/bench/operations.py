"""What an operation costs inside one task: python scripts/bench/operations.py

Steps of 1,000 operations on 10 floats, a chain (each needs the one before it) and a wide graph (none needs another), and the
chain of 10 operations on 16 MiB. The input is fed or a variable, so nothing can be computed ahead; the wide graph's operations
have different constants, so they aren't one. Contestants:

mpirt      the step by ``make_callable``
numpy      the same loop by hand: each operation makes a new array
numpy out= the same into arrays that were made before
tensorflow the step in one process, by ``make_callable``; without its rewriting of the graph where it would compute less
limit      (16 MiB) what reading the array once and writing it once takes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from figures import Measured, Report, Target, arguments, timed
from peers import Peer

import mpirt as tf

SMALL = 10  # floats
BIG_NBYTES, BIG_OPERATIONS = 16 * 2**20, 10
Call = Callable[[], object]


def chain(count: int) -> tuple[Call, dict[str, Call]]:
    """Multiply and add in turn: mpirt's step, and the loops by hand."""
    x = tf.placeholder(tf.float32, [SMALL])
    y = x
    for number in range(count):
        y = tf.add(y, x) if number % 2 else tf.multiply(y, x)
    ones, a, b = np.ones(SMALL, np.float32), np.empty(SMALL, np.float32), np.empty(SMALL, np.float32)

    def fresh() -> Any:
        value = ones
        for _ in range(count // 2):
            value = value * ones
            value = value + ones
        return value

    def into() -> Any:
        add, multiply, value = np.add, np.multiply, ones
        for _ in range(count // 2):
            multiply(value, ones, out=a)
            add(a, ones, out=b)
            value = b
        return value

    return _step(y, x, ones), {"numpy": fresh, "numpy out=": into}


def wide(count: int) -> tuple[Call, dict[str, Call]]:
    """Operations that only need what is fed. Nobody keeps their results."""
    x = tf.placeholder(tf.float32, [SMALL])
    results = [tf.add(x, float(number)) if number % 2 else tf.multiply(x, float(number)) for number in range(count)]
    ones = np.ones(SMALL, np.float32)
    constants = [np.array(number, np.float32) for number in range(count)]  # faster than scalars
    outs = [np.empty(SMALL, np.float32) for _ in range(count)]

    def fresh() -> Any:
        value = ones
        for even, odd in zip(constants[::2], constants[1::2], strict=True):
            value = ones * even
            value = ones + odd
        return value

    def into() -> Any:
        add, multiply = np.add, np.multiply
        for even, odd, first, second in zip(constants[::2], constants[1::2], outs[::2], outs[1::2], strict=True):
            multiply(ones, even, out=first)
            add(ones, odd, out=second)
        return outs[-1]

    return _step(tf.group(results), x, ones, results[-1]), {"numpy": fresh, "numpy out=": into}


def big(nbytes: int, count: int) -> tuple[Call, dict[str, Call]]:
    """A chain on a large array, which is a variable."""
    value = np.full(nbytes // 4, 1.0, np.float32)
    y = x = tf.Variable(value)
    half = np.float32(0.5)
    for number in range(count):
        y = tf.add(y, 0.5) if number % 2 else tf.multiply(y, x)
    a, b = np.empty_like(value), np.empty_like(value)

    def fresh() -> Any:
        result = value
        for _ in range(count // 2):
            result = result * value
            result = result + half
        return result

    def into() -> Any:
        result = value
        for _ in range(count // 2):
            np.multiply(result, value, out=a)
            np.add(a, half, out=b)
            result = b
        return result

    def copy() -> Any:
        np.copyto(a, value)

    return _step(y), {"numpy": fresh, "numpy out=": into, "limit": copy}


def _step(fetch: Any, feed: Any = None, value: Any = None, compare: Any = None) -> Any:
    """A callable that runs ``fetch``; it knows ``answer``, the value of ``compare`` (or of ``fetch``)."""
    session = tf.Session()
    session.run(tf.global_variables_initializer())
    feeds = {} if feed is None else {feed: value}
    call = session.make_callable(fetch, list(feeds))
    step = (lambda: call(value)) if feeds else (lambda: call())
    step.answer = session.run(fetch if compare is None else compare, feeds)  # type: ignore[attr-defined]
    return step


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--operations", type=int, default=1000, help="of the small graphs; an even number (default 1000)")
    args = parser.parse_args()
    report = Report("operations")
    peer = Peer(args.tensorflow, "tensorflow_peer.py") if args.tensorflow else None
    steps = 20 if args.quick else 100
    cases: list[tuple[str, int, int, float, Any, dict[str, Any]]] = [
        ("chain", args.operations, steps, 0.85, chain, {"case": "chain"}),
        ("wide", args.operations, steps, 0.85, wide, {"case": "wide"}),
        ("16 MiB chain", BIG_OPERATIONS, max(3, steps // 10), 0.5, big, {"case": "big", "nbytes": BIG_NBYTES}),
    ]
    for name, operations, count, at_most, make, request in cases:
        with tf.Graph().as_default():
            step, others = make(BIG_NBYTES, operations) if make is big else make(operations)
            of = {contestant: Measured() for contestant in ("mpirt", *others, "tensorflow")}
            for contestant in others:
                if contestant != "limit":
                    np.testing.assert_array_equal(others[contestant](), step.answer)
            for _ in range(args.rounds):
                with report.others:
                    for contestant, call in {"mpirt": step, **others}.items():
                        of[contestant].add([sample / operations for sample in timed(call, count, warmup=1)])
                if peer:
                    answer = peer.ask(line="operations", operations=operations, count=count, warmup=3, **request)
                    of["tensorflow"].add([sample / operations for sample in answer["samples"]])
        unit = "ms" if make is big else "us"
        figure = "an operation on 16 MiB" if make is big else "a small operation"
        report.row(f"{name} of {operations}", figure, unit, of, Target(ratio="mpirt / numpy", at_most=at_most))
    report.finish(args.json)
    if peer:
        peer.close()


if __name__ == "__main__":
    main()
