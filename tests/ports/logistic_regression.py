"""A classic TensorFlow-1 script: softmax regression with flags, logging and a feed loop. Only its import line is mpirt's."""

from __future__ import print_function

import json

import numpy as np

import mpirt as tf

flags = tf.app.flags
flags.DEFINE_float("learning_rate", 0.5, "Initial learning rate.")
flags.DEFINE_integer("training_epochs", 15, "Number of passes over the data.")
flags.DEFINE_integer("batch_size", 50, "Examples in a batch.")
flags.DEFINE_integer("display_step", 5, "Epochs between two log lines.")
flags.DEFINE_boolean("shuffle", True, "Whether to visit the examples in another order in each epoch.")
FLAGS = flags.FLAGS

NUM_FEATURES = 20
NUM_CLASSES = 5


def load_data():
    """Examples around one centre for each class, and their labels, one-hot."""
    rng = np.random.RandomState(7)
    centres = rng.randn(NUM_CLASSES, NUM_FEATURES)
    classes = rng.randint(NUM_CLASSES, size=600)
    images = (centres[classes] + rng.randn(600, NUM_FEATURES)).astype(np.float32)
    return (images[:500], np.eye(NUM_CLASSES)[classes[:500]]), (images[500:], np.eye(NUM_CLASSES)[classes[500:]])


def main(_):
    tf.logging.set_verbosity(tf.logging.INFO)
    (train_x, train_y), (test_x, test_y) = load_data()

    # tf Graph Input
    x = tf.placeholder(tf.float32, [None, NUM_FEATURES], name="x")
    y = tf.placeholder(tf.float32, [None, NUM_CLASSES], name="y")

    # Set model weights
    W = tf.Variable(tf.zeros([NUM_FEATURES, NUM_CLASSES]), name="weights")
    b = tf.Variable(tf.zeros([NUM_CLASSES]), name="bias")

    # Construct model
    pred = tf.nn.softmax(tf.matmul(x, W) + b)

    # Minimize error using cross entropy
    cost = tf.reduce_mean(-tf.reduce_sum(y * tf.log(tf.clip_by_value(pred, 1e-10, 1.0)), reduction_indices=1))
    optimizer = tf.train.GradientDescentOptimizer(FLAGS.learning_rate).minimize(cost)

    # Test model
    correct_prediction = tf.equal(tf.argmax(pred, 1), tf.argmax(y, 1))
    accuracy = tf.reduce_mean(tf.cast(correct_prediction, tf.float32))

    init = tf.global_variables_initializer()
    order = np.random.RandomState(0)
    costs = []
    with tf.Session() as sess:
        sess.run(init)
        for epoch in range(FLAGS.training_epochs):
            rows = order.permutation(len(train_x)) if FLAGS.shuffle else np.arange(len(train_x))
            avg_cost = 0.0
            total_batch = len(train_x) // FLAGS.batch_size
            for i in range(total_batch):
                batch = rows[i * FLAGS.batch_size : (i + 1) * FLAGS.batch_size]
                _, c = sess.run([optimizer, cost], feed_dict={x: train_x[batch], y: train_y[batch]})
                avg_cost += c / total_batch
            costs.append(float(avg_cost))
            if (epoch + 1) % FLAGS.display_step == 0:
                tf.logging.info("Epoch: %04d cost=%.9f", epoch + 1, avg_cost)
        tf.logging.info("Optimization Finished!")
        weights, bias = sess.run([W, b])
        result = {
            "costs": costs,
            "accuracy": float(accuracy.eval({x: test_x, y: test_y})),
            "weights": weights[0].tolist(),
            "bias": bias.tolist(),
        }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    tf.app.run()
