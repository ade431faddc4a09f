"""What `training.py` trains: networks, data, batches and first values, the same for every contestant, and an account of a run.

Owns: everything that decides the numbers. A contestant takes layers, rates, batches in order and the split of the variables over
the ps tasks from here, so that all of them do the same arithmetic and their losses can be compared. Plain numpy: TensorFlow's
side reads the same problems from a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
WORKERS = PS = 2
MOMENTUM = 0.9


@dataclass(frozen=True)
class Problem:
    """A network of relu layers on some data; ``batches[w]`` is what worker ``w`` trains on, in order, again and again.

    Attributes
    ----------
    layers : number of units of each layer, the inputs' first
    rates : learning rate of each form, see `training.FORMS`
    test : images and labels to measure the accuracy on, or None
    """

    name: str
    layers: tuple[int, ...]
    rates: dict[str, float]
    batches: tuple[list[tuple[Array, Labels]], ...]
    test: tuple[Array, Labels] | None

    @property
    def batch(self) -> int:
        """Examples in a batch of one worker."""
        return len(self.batches[0][0][1])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the variables: weights and biases in turn."""
        pairs = zip(self.layers[:-1], self.layers[1:], strict=True)
        return [shape for rows, columns in pairs for shape in ((rows, columns), (columns,))]

    def initial(self) -> list[Array]:
        """The first values of the variables: Glorot's uniform weights, zeros as biases."""
        rng = np.random.default_rng(7)
        values = []
        for shape in self.shapes:
            limit = np.sqrt(6 / sum(shape)) if len(shape) == 2 else 0.0
            values.append(rng.uniform(-limit, limit, shape).astype(np.float32))
        return values

    def homes(self) -> list[int]:
        """The ps task of each variable: the one with the least bytes so far."""
        loads, homes = [0] * PS, []
        for shape in self.shapes:
            homes.append(loads.index(min(loads)))
            loads[homes[-1]] += int(np.prod(shape))
        return homes


def digits() -> Problem:
    """The digits job's network and data, half of each batch of 128 for each worker."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "jobs" / "digits"))
    import data

    loaded = data.load(0)
    rng, share = np.random.default_rng(0), 64
    batches: tuple[list[tuple[Array, Labels]], ...] = tuple([] for _ in range(WORKERS))
    for _ in range(20):
        order = rng.permutation(len(loaded.train_labels))
        for end in range(WORKERS * share, len(order) + 1, WORKERS * share):
            for worker, rows in enumerate(order[end - WORKERS * share : end].reshape(WORKERS, share)):
                batches[worker].append((loaded.train_images[rows], loaded.train_labels[rows]))
    rates = {"sync": 0.1, "async": 0.05, "all-reduce": 0.1}
    return Problem("digits", (64, 256, 128, 10), rates, batches, (loaded.test_images, loaded.test_labels))


def big() -> Problem:
    """A network of 1.9 million parameters on random data."""
    rng, layers, share = np.random.default_rng(0), (784, 1024, 1024, 10), 128
    batches = tuple(
        [(rng.standard_normal((share, layers[0]), np.float32), rng.integers(0, layers[-1], share)) for _ in range(8)]
        for _ in range(WORKERS)
    )
    return Problem("784-1024-1024-10", layers, dict.fromkeys(("sync", "async", "all-reduce"), 0.01), batches, None)


def save(problem: Problem, path: str) -> None:
    """Write it to ``path`` (.npz), for `load`."""
    arrays: dict[str, Any] = {}
    for worker, batches in enumerate(problem.batches):
        arrays[f"images{worker}"], arrays[f"labels{worker}"] = map(np.stack, zip(*batches, strict=True))
    if problem.test is not None:
        arrays["test_images"], arrays["test_labels"] = problem.test
    rates = [problem.rates[form] for form in sorted(problem.rates)]
    np.savez(path, name=problem.name, layers=problem.layers, forms=sorted(problem.rates), rates=rates, **arrays)


def load(path: str) -> Problem:
    """What `save` wrote."""
    with np.load(path) as file:
        batches = tuple(list(zip(file[f"images{w}"], file[f"labels{w}"], strict=True)) for w in range(WORKERS))
        test = (file["test_images"], file["test_labels"]) if "test_images" in file else None
        rates = dict(zip(file["forms"].tolist(), file["rates"].tolist(), strict=True))
        return Problem(str(file["name"]), tuple(file["layers"].tolist()), rates, batches, test)


class Contestant(Protocol):
    """One way to train. Every rank holds one and makes the same calls."""

    def reset(self) -> None:
        """Back to the first values, also of the optimizer."""

    def steps(self, count: int, stop: Callable[[], bool] | None = None) -> list[float]:
        """Take ``count`` steps, fewer if ``stop`` says so before one, and give the losses: of all workers in a synchronous form,
        of this worker in an asynchronous one. Empty where this rank doesn't know them."""

    def accuracy(self) -> float:
        """Share of the test images whose digit is found; nan where this rank doesn't know it."""
