"""The handwritten digits that ship inside scikit-learn: 1,797 real images of 8 x 8 pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

NUM_TEST = 360


class Digits(NamedTuple):
    """Images as float32 [N, 64] in [0, 1], labels as int64 [N]."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load(seed: int = 0) -> Digits:
    """The images, shuffled by ``seed`` and split; the same on every rank."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    return Digits(images[NUM_TEST:], labels[NUM_TEST:], images[:NUM_TEST], labels[:NUM_TEST])
