"""A classic TensorFlow-1 script: in-graph replication. All tasks only join, but for the one client beside worker 0: it builds
the whole graph, a tower on each worker, feeds the towers' queues from threads and runs all of it through one session. Only
its import line is mpirt's."""

from __future__ import absolute_import, division, print_function

import argparse
import json
import sys
import threading

import numpy as np

import mpirt as tf

FLAGS = None
NUM_EXAMPLES, NUM_FEATURES = 200, 12


def load_data():
    """Points, and a smooth function of them with noise."""
    rng = np.random.RandomState(33)
    x = rng.uniform(-1, 1, [NUM_EXAMPLES, NUM_FEATURES]).astype(np.float32)
    y = np.sin(x.dot(rng.randn(NUM_FEATURES, 1))) + 0.05 * rng.randn(NUM_EXAMPLES, 1)
    return x, y.astype(np.float32)


def variable_on_ps(name, shape, seed):
    initializer = tf.constant_initializer(np.random.RandomState(seed).normal(0, 0.4, shape))
    return tf.get_variable(name, shape, initializer=initializer)


def tower_loss(scope, points, values):
    """Mean squared error of the network, whose variables all towers share."""
    with tf.variable_scope("layer1"):
        hidden = tf.tanh(tf.matmul(points, variable_on_ps("weights", [NUM_FEATURES, 20], 1)) + variable_on_ps("biases", [20], 2))
    with tf.variable_scope("layer2"):
        predicted = tf.matmul(hidden, variable_on_ps("weights", [20, 1], 3)) + variable_on_ps("biases", [1], 4)
    tf.add_to_collection("losses", tf.reduce_mean(tf.square(predicted - values)))
    return tf.add_n(tf.get_collection("losses", scope), name="total_loss")


def average_gradients(tower_grads):
    """The average over all towers, for each variable."""
    average_grads = []
    for grad_and_vars in zip(*tower_grads):
        grads = [tf.expand_dims(g, 0) for g, _ in grad_and_vars]
        grad = tf.reduce_mean(tf.concat(axis=0, values=grads), 0)
        # The variables are shared by the towers, so the first tower's pointer to it will do.
        average_grads.append((grad, grad_and_vars[0][1]))
    return average_grads


def feed_tower(sess, coord, enqueue_op, points, values, data, rows):
    """Puts batches into the queue of one tower until it is closed."""
    x, y = data
    with coord.stop_on_exception():
        try:
            start = 0
            while not coord.should_stop():
                batch = rows[np.arange(start, start + FLAGS.batch_size) % len(rows)]
                sess.run(enqueue_op, feed_dict={points: x[batch], values: y[batch]})
                start += FLAGS.batch_size
        except tf.errors.CancelledError:
            assert coord.should_stop()


def train(master, cluster):
    """What the client runs."""
    num_workers = cluster.num_tasks("worker")
    data = load_data()
    towers, tower_grads, losses = [], [], []
    with tf.Graph().as_default() as graph:
        with tf.device("/job:ps/task:0/cpu:0"):
            global_step = tf.get_variable("global_step", [], initializer=tf.constant_initializer(0), trainable=False)
        lr = tf.train.exponential_decay(FLAGS.learning_rate, global_step, 30, 0.5, staircase=True)
        opt = tf.train.MomentumOptimizer(lr, 0.9)
        for i in range(num_workers):
            setter = tf.train.replica_device_setter(worker_device="/job:worker/task:%d" % i, cluster=cluster)
            with tf.device(setter), tf.name_scope("tower_%d" % i) as scope, tf.variable_scope(tf.get_variable_scope(), reuse=i > 0):
                points = tf.placeholder(tf.float32, [FLAGS.batch_size, NUM_FEATURES])
                values = tf.placeholder(tf.float32, [FLAGS.batch_size, 1])
                queue = tf.FIFOQueue(2, [tf.float32, tf.float32], shapes=[points.get_shape(), values.get_shape()])
                loss = tower_loss(scope, *queue.dequeue())
                tower_grads.append(opt.compute_gradients(loss))
                losses.append(loss)
                towers.append((queue, queue.enqueue([points, values]), points, values))
        with tf.device("/job:ps/task:0"):
            grads = average_gradients(tower_grads)
            mean_loss = tf.add_n(losses) / num_workers
        apply_gradient_op = opt.apply_gradients(grads, global_step=global_step)
        variable_averages = tf.train.ExponentialMovingAverage(0.95)
        variables = tf.trainable_variables()
        average_op = variable_averages.apply(variables)
        close_op = tf.group(*[queue.close(cancel_pending_enqueues=True) for queue, _, _, _ in towers])
        sizes = [queue.size() for queue, _, _, _ in towers]
        init = tf.global_variables_initializer()
        devices = {v.op.name: v.device for v in tf.global_variables()}

    config = tf.ConfigProto(allow_soft_placement=True, log_device_placement=False)
    history = []
    with tf.Session(master, graph=graph, config=config) as sess:
        sess.run(init)
        coord = tf.train.Coordinator()
        threads = []
        for i, (_, enqueue_op, points, values) in enumerate(towers):
            rows = np.arange(i, NUM_EXAMPLES, num_workers)
            args = (sess, coord, enqueue_op, points, values, data, rows)
            threads.append(threading.Thread(target=feed_tower, args=args))
        for thread in threads:
            thread.start()
        for step in range(FLAGS.steps):
            _, loss_value, rate = sess.run([apply_gradient_op, mean_loss, lr])
            sess.run(average_op)
            assert not np.isnan(loss_value), "Model diverged with loss = NaN"
            history.append(float(loss_value))
            if step % 20 == 0:
                print("step %d, loss = %.4f (learning rate %.4f)" % (step, loss_value, rate))
        coord.request_stop()
        sess.run(close_op)
        coord.join(threads, stop_grace_period_secs=10)
        assert max(sess.run(sizes)) <= 2
        weights = sess.run(variables)

    # The variables live on the parameter servers, not in a session.
    with tf.Session(master, graph=graph) as sess:
        again = sess.run(variables)
        assert all(np.array_equal(a, b) for a, b in zip(weights, again))
        result = {
            "losses": history[::4],
            "global_step": int(sess.run(global_step)),
            "average": sess.run(variable_averages.average(variables[0]))[0].tolist(),
            "biases": again[1].tolist(),
            "devices": devices,
        }
    print("RESULT " + json.dumps(result))


def main(_):
    ps_hosts, worker_hosts = FLAGS.ps_hosts.split(","), FLAGS.worker_hosts.split(",")
    cluster = tf.train.ClusterSpec({"ps": ps_hosts, "worker": worker_hosts})
    server = tf.train.Server(cluster, job_name=FLAGS.job_name, task_index=FLAGS.task_index)
    if FLAGS.job_name == "worker" and FLAGS.task_index == 0:
        train(FLAGS.master or "grpc://" + worker_hosts[0], cluster)
    else:
        server.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ps_hosts", type=str, default="localhost:2222,localhost:2223", help="Comma-separated list of hostname:port pairs")
    parser.add_argument("--worker_hosts", type=str, default="localhost:2224,localhost:2225")
    parser.add_argument("--job_name", type=str, default="worker")
    parser.add_argument("--task_index", type=int, default=0)
    parser.add_argument("--master", type=str, default="", help="Session target of the client; worker 0 if empty")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    FLAGS, unparsed = parser.parse_known_args()
    tf.app.run(main=main, argv=[sys.argv[0]] + unparsed)
