"""A classic TensorFlow-1 script: a network in variable scopes, its evaluation reusing them; dropout, weight decay from a
collection, decaying learning rate, Adam, global step. Only its import line is mpirt's."""

from __future__ import absolute_import, division, print_function

import json

import numpy as np

import mpirt as tf

tf.app.flags.DEFINE_float("keep_prob", 1.0, "Probability to keep a hidden unit in training.")
tf.app.flags.DEFINE_float("weight_decay", 1e-3, "Factor of the L2 loss of all weights.")
tf.app.flags.DEFINE_integer("steps", 60, "Number of steps.")
tf.app.flags.DEFINE_string("initializer", "fixed", "fixed: the same weights each time; random: by the graph's seed.")
FLAGS = tf.app.flags.FLAGS


def _variable_with_weight_decay(name, shape, seed, wd):
    """A variable whose weight decay is in the collection "losses"."""
    if FLAGS.initializer == "fixed":
        initializer = tf.constant_initializer(np.random.RandomState(seed).normal(0, 0.2, shape))
    else:
        initializer = tf.truncated_normal_initializer(stddev=0.2)
    var = tf.get_variable(name, shape, initializer=initializer)
    if wd and not tf.get_variable_scope().reuse:
        weight_decay = tf.multiply(tf.nn.l2_loss(var), wd, name="weight_loss")
        tf.add_to_collection("losses", weight_decay)
    return var


def inference(images, keep_prob):
    """Logits."""
    with tf.variable_scope("hidden1") as scope:
        weights = _variable_with_weight_decay("weights", [16, 24], 1, FLAGS.weight_decay)
        biases = tf.get_variable("biases", [24], initializer=tf.constant_initializer(0.1))
        hidden1 = tf.nn.relu(tf.nn.bias_add(tf.matmul(images, weights), biases), name=scope.name)
        hidden1 = tf.nn.dropout(hidden1, keep_prob=keep_prob)
    with tf.variable_scope("hidden2") as scope:
        weights = _variable_with_weight_decay("weights", [24, 12], 2, FLAGS.weight_decay)
        biases = tf.get_variable("biases", [12], initializer=tf.constant_initializer(0.1))
        hidden2 = tf.nn.tanh(tf.nn.xw_plus_b(hidden1, weights, biases), name=scope.name)
        hidden2 = tf.nn.dropout(hidden2, keep_prob=keep_prob)
    with tf.variable_scope("softmax_linear", regularizer=lambda w: 1e-4 * tf.reduce_sum(tf.abs(w))):
        weights = tf.get_variable("weights", initializer=np.random.RandomState(3).normal(0, 0.2, [12, 3]).astype(np.float32))
        biases = tf.get_variable("biases", [3], initializer=tf.zeros_initializer(), regularizer=None)
        return tf.add(tf.matmul(hidden2, weights), biases)


def loss_fn(logits, labels):
    """Cross entropy, weight decay and what the scopes' regularizers ask for."""
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    tf.add_to_collection("losses", tf.reduce_mean(cross_entropy, name="cross_entropy"))
    regularization = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
    return tf.add_n(tf.get_collection("losses") + regularization, name="total_loss")


def train_op(total_loss, global_step):
    """One step of Adam, its learning rate, and averages of the variables."""
    lr = tf.train.exponential_decay(0.02, global_step, decay_steps=20, decay_rate=0.5, staircase=True)
    opt = tf.train.AdamOptimizer(lr, epsilon=1e-4)
    grads = opt.compute_gradients(total_loss)
    clipped, norm = tf.clip_by_global_norm([g for g, _ in grads], 5.0)
    apply_gradient_op = opt.apply_gradients(zip(clipped, [v for _, v in grads]), global_step=global_step)
    averages = tf.train.ExponentialMovingAverage(0.9, global_step)
    with tf.control_dependencies([apply_gradient_op]):
        return averages.apply(tf.trainable_variables()), lr, norm, averages


def main(argv=None):
    rng = np.random.RandomState(11)
    data = rng.rand(240, 16).astype(np.float32)
    labels_np = np.argmax(data[:, :3], axis=1).astype(np.int32)

    with tf.Graph().as_default(), tf.device("/cpu:0"):
        tf.set_random_seed(1234)
        global_step = tf.Variable(0, trainable=False, name="global_step")
        images = tf.placeholder(tf.float32, shape=(None, 16))
        labels = tf.placeholder(tf.int32, shape=(None,))
        keep_prob = tf.placeholder_with_default(FLAGS.keep_prob, shape=())

        with tf.variable_scope("model"):
            logits = inference(images, keep_prob)
        total_loss = loss_fn(logits, labels)
        train, lr, norm, averages = train_op(total_loss, global_step)
        with tf.variable_scope("model", reuse=True):
            eval_logits = inference(images, 1.0)
        top_1 = tf.reduce_sum(tf.cast(tf.nn.in_top_k(eval_logits, labels, 1), tf.int32))

        sess = tf.Session(config=tf.ConfigProto(log_device_placement=False, allow_soft_placement=True))
        sess.run(tf.global_variables_initializer())
        history = []
        for step in range(FLAGS.steps):
            rows = slice(step % 6 * 40, step % 6 * 40 + 40)
            feed_dict = {images: data[rows], labels: labels_np[rows]}
            _, loss_value, rate, norm_value = sess.run([train, total_loss, lr, norm], feed_dict=feed_dict)
            assert not np.isnan(loss_value), "Model diverged with loss = NaN"
            history.append([float(loss_value), float(rate), float(norm_value)])
        correct = sess.run(top_1, {images: data, labels: labels_np})
        first = tf.trainable_variables()[0]
        result = {
            "history": history[::6],
            "correct": int(correct),
            "global_step": int(tf.train.global_step(sess, global_step)),
            "variables": [v.op.name for v in tf.global_variables()],
            "weights": sess.run(first)[0].tolist(),
            "average": averages.average(first).eval(session=sess)[0].tolist(),
        }
        sess.close()
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    tf.app.run()
