"""A classic TensorFlow-1 script: between-graph replication. Parameter servers only join; each worker builds its own replica of
the graph, feeds it from its own queue and trains at its own pace. Only its import line is mpirt's."""

from __future__ import print_function

import argparse
import json
import sys
import time

import numpy as np

import mpirt as tf

FLAGS = None
NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES, HIDDEN = 300, 10, 4, 16


def load_data():
    """Examples around one centre for each class."""
    rng = np.random.RandomState(21)
    centres = 1.2 * rng.randn(NUM_CLASSES, NUM_FEATURES)
    labels = rng.randint(NUM_CLASSES, size=NUM_EXAMPLES)
    return (centres[labels] + rng.randn(NUM_EXAMPLES, NUM_FEATURES)).astype(np.float32), labels.astype(np.int64)


def input_queue(examples, batch_size):
    """The next numbers of examples, [batch_size]; a queue runner repeats this worker's share for ever."""
    queue = tf.FIFOQueue(3 * batch_size, [tf.int32], shapes=[[]], name="examples")
    tf.train.add_queue_runner(tf.train.QueueRunner(queue, [queue.enqueue_many([examples])]))
    return queue.dequeue_many(batch_size)


def inference(images):
    """Logits of a network with one hidden layer."""
    rng = np.random.RandomState(4)
    with tf.variable_scope("hidden"):
        weights = tf.get_variable(
            "weights", [NUM_FEATURES, HIDDEN], initializer=tf.constant_initializer(rng.normal(0, 0.3, [NUM_FEATURES, HIDDEN]))
        )
        biases = tf.get_variable("biases", [HIDDEN], initializer=tf.zeros_initializer())
        hidden = tf.nn.relu(tf.nn.xw_plus_b(images, weights, biases))
    with tf.variable_scope("softmax"):
        weights = tf.get_variable(
            "weights", [HIDDEN, NUM_CLASSES], initializer=tf.constant_initializer(rng.normal(0, 0.3, [HIDDEN, NUM_CLASSES]))
        )
        biases = tf.get_variable("biases", [NUM_CLASSES], initializer=tf.zeros_initializer())
        return tf.nn.xw_plus_b(hidden, weights, biases)


def train(server, cluster):
    """What each worker runs."""
    is_chief = FLAGS.task_index == 0
    num_workers = cluster.num_tasks("worker")
    data, classes = load_data()

    # Between-graph replication
    with tf.device(tf.train.replica_device_setter(worker_device="/job:worker/task:%d" % FLAGS.task_index, cluster=cluster)):
        global_step = tf.get_variable("global_step", [], dtype=tf.int64, initializer=tf.zeros_initializer(), trainable=False)
        # How often each example was trained on
        seen = tf.get_variable("seen", [NUM_EXAMPLES], dtype=tf.int32, initializer=tf.zeros_initializer(), trainable=False)

        images, labels = tf.constant(data), tf.constant(classes)
        share = np.arange(FLAGS.task_index, NUM_EXAMPLES, num_workers, dtype=np.int32)
        batch = input_queue(share, FLAGS.batch_size)
        with tf.variable_scope("model"):
            logits = inference(tf.gather(images, batch))
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.gather(labels, batch), logits=logits), name="loss"
        )
        optimizer = tf.train.AdamOptimizer(FLAGS.learning_rate, use_locking=True)
        train_op = tf.group(
            optimizer.minimize(loss, global_step=global_step), tf.scatter_add(seen, batch, tf.ones_like(batch), use_locking=True)
        )

        # Evaluation
        with tf.variable_scope("model", reuse=True):
            all_logits = inference(images)
        total_loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=all_logits))
        accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(all_logits, 1), labels), tf.float32))

        init_op = tf.global_variables_initializer()
        uninitialized = tf.report_uninitialized_variables()

    coord = tf.train.Coordinator()
    config = tf.ConfigProto(
        allow_soft_placement=True,
        log_device_placement=False,
        device_filters=["/job:ps", "/job:worker/task:%d" % FLAGS.task_index],
    )
    with tf.Session(server.target, config=config) as sess:
        if is_chief:
            print("Worker %d: Initializing variables..." % FLAGS.task_index)
            sess.run(init_op)
            assert len(sess.run(uninitialized)) == 0
        else:
            print("Worker %d: Waiting for variables to be initialized..." % FLAGS.task_index)
            while len(sess.run(uninitialized)) > 0:
                time.sleep(0.02)
        print("Worker %d: Session initialization complete." % FLAGS.task_index)
        threads = tf.train.start_queue_runners(sess=sess, coord=coord)

        losses = []
        for _ in range(FLAGS.steps):
            if coord.should_stop():
                break
            _, value = sess.run([train_op, loss])
            losses.append(float(value))
        print("Worker %d: %d steps done, training loss %.4f" % (FLAGS.task_index, len(losses), losses[-1]))

        if is_chief:
            # The other workers' steps count, too.
            while sess.run(global_step) < FLAGS.steps * num_workers:
                time.sleep(0.02)
            final_loss, final_accuracy = sess.run([total_loss, accuracy])
            print("Worker 0: loss %.4f, accuracy %.4f" % (final_loss, final_accuracy))
            result = {
                "losses": losses[::5],
                "loss": float(final_loss),
                "accuracy": float(final_accuracy),
                "global_step": int(sess.run(global_step)),
                "seen": sess.run(seen).tolist(),
                "devices": {v.op.name: v.device for v in tf.global_variables()},
            }
            print("RESULT " + json.dumps(result))
        coord.request_stop()
        coord.join(threads, stop_grace_period_secs=10)


def main(_):
    ps_hosts = FLAGS.ps_hosts.split(",")
    worker_hosts = FLAGS.worker_hosts.split(",")

    # Create a cluster from the parameter server and worker hosts.
    cluster = tf.train.ClusterSpec({"ps": ps_hosts, "worker": worker_hosts})

    # Create and start a server for the local task.
    server = tf.train.Server(cluster, job_name=FLAGS.job_name, task_index=FLAGS.task_index)

    if FLAGS.job_name == "ps":
        server.join()
    elif FLAGS.job_name == "worker":
        train(server, cluster)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.register("type", "bool", lambda v: v.lower() == "true")
    # Flags for defining the tf.train.ClusterSpec
    parser.add_argument("--ps_hosts", type=str, default="localhost:2222", help="Comma-separated list of hostname:port pairs")
    parser.add_argument("--worker_hosts", type=str, default="localhost:2223,localhost:2224")
    # Flags for defining the tf.train.Server
    parser.add_argument("--job_name", type=str, default="", help="One of 'ps', 'worker'")
    parser.add_argument("--task_index", type=int, default=0, help="Index of task within the job")
    # Hyper-parameters
    parser.add_argument("--steps", type=int, default=100, help="Number of steps of each worker")
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--learning_rate", type=float, default=0.01)
    FLAGS, unparsed = parser.parse_known_args()
    tf.app.run(main=main, argv=[sys.argv[0]] + unparsed)
