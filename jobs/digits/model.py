"""The network 64-256-128-10 for handwritten digits, as the training programs here share it."""

from __future__ import annotations

from collections.abc import Sequence

import mpirt as tf

LAYERS = (64, 256, 128, 10)


def variables() -> list[tuple[tf.Variable, tf.Variable]]:
    """Weights and biases of each layer; put them on the ps tasks by a device setter."""
    layers = []
    for i, (rows, columns) in enumerate(zip(LAYERS[:-1], LAYERS[1:], strict=True)):
        weights = tf.get_variable(f"layer{i}/weights", [rows, columns], initializer=tf.glorot_uniform_initializer(seed=i))
        biases = tf.get_variable(f"layer{i}/biases", [columns], initializer=tf.zeros_initializer())
        layers.append((weights, biases))
    return layers


def network(images: tf.Tensor, layers: Sequence[tuple[tf.Variable | tf.Tensor, tf.Variable | tf.Tensor]]) -> tf.Tensor:
    """Logits [N, 10] of images [N, 64]; ``layers`` are the variables, or values read from them."""
    hidden = images
    for weights, biases in layers[:-1]:
        hidden = tf.nn.relu(tf.matmul(hidden, weights) + biases)
    weights, biases = layers[-1]
    return tf.matmul(hidden, weights) + biases


def mean_loss(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross entropy of labels [N], averaged over the batch."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


def fraction_correct(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Share of the images whose largest logit is that of their label."""
    return tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
