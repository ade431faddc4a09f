"""A classic TensorFlow-1 script: ratings from embeddings of users and items that are sharded over parameter servers, with
sparse gradients. Only its import line is mpirt's."""

import argparse
import json
import sys

import numpy as np

import mpirt as tf

FLAGS = None
NUM_USERS, NUM_ITEMS, RANK = 40, 25, 6


def ratings():
    rng = np.random.RandomState(5)
    table = rng.randn(NUM_USERS, 3).dot(rng.randn(3, NUM_ITEMS))
    users, items = rng.randint(NUM_USERS, size=(80, 32)), rng.randint(NUM_ITEMS, size=(80, 32))
    return users.astype(np.int32), items.astype(np.int64), table[users, items].astype(np.float32)


def main(_):
    ps_hosts, worker_hosts = FLAGS.ps_hosts.split(","), FLAGS.worker_hosts.split(",")
    cluster = tf.train.ClusterSpec({"ps": ps_hosts, "worker": worker_hosts})
    config = tf.ConfigProto(cluster_def=cluster.as_cluster_def(), log_device_placement=False)

    with tf.device(tf.train.replica_device_setter(worker_device="/job:worker/task:%d" % FLAGS.task_index, cluster=cluster)):
        global_step = tf.train.get_or_create_global_step()
        user = tf.placeholder(tf.int32, [None], name="user")
        item = tf.placeholder(tf.int64, [None], name="item")
        rating = tf.placeholder(tf.float32, [None], name="rating")
        rng = np.random.RandomState(9)
        with tf.variable_scope("embeddings"):
            # Users in two shards, by id modulo 2: one on each ps.
            user_shards = [
                tf.get_variable("users_%d" % i, initializer=rng.normal(0, 0.3, [NUM_USERS // 2, RANK]).astype(np.float32))
                for i in range(2)
            ]
            items = tf.get_variable("items", [NUM_ITEMS, RANK], initializer=tf.constant_initializer(rng.normal(0, 0.3, [NUM_ITEMS, RANK])))
            item_bias = tf.get_variable("item_bias", [NUM_ITEMS], initializer=tf.zeros_initializer())
        user_vectors = tf.nn.embedding_lookup(user_shards, user, partition_strategy="mod")
        item_vectors = tf.nn.embedding_lookup(items, item)
        predicted = tf.reduce_sum(user_vectors * item_vectors, axis=1) + tf.gather(item_bias, item)
        loss = tf.losses.mean_squared_error(rating, predicted)

        optimizers = {
            "sgd": lambda: tf.train.GradientDescentOptimizer(0.3),
            "momentum": lambda: tf.train.MomentumOptimizer(0.1, 0.8),
            "adagrad": lambda: tf.train.AdagradOptimizer(0.4),
            "adam": lambda: tf.train.AdamOptimizer(0.02),
            "rmsprop": lambda: tf.train.RMSPropOptimizer(0.02),
        }
        optimizer = optimizers[FLAGS.optimizer]()
        gradients = optimizer.compute_gradients(loss)
        assert all(isinstance(g, tf.IndexedSlices) for g, _ in gradients)
        train_op = optimizer.apply_gradients(gradients, global_step=global_step)

    losses = []
    with tf.Session(FLAGS.master, config=config) as sess:
        sess.run(tf.global_variables_initializer())
        for users_batch, items_batch, ratings_batch in zip(*ratings()):
            feed = {user: users_batch, item: items_batch, rating: ratings_batch}
            _, value, step = sess.run([train_op, loss, global_step], feed_dict=feed)
            losses.append(float(value))
        shards, item_table, bias = sess.run([user_shards, items, item_bias])
        result = {
            "losses": losses[::5],
            "global_step": int(sess.run(global_step)),
            "devices": {v.op.name: v.device for v in tf.global_variables()},
            "users": [s[0].tolist() for s in shards],
            "items": item_table[0].tolist(),
            "bias": bias.tolist(),
        }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.register("type", "bool", lambda v: v.lower() == "true")
    parser.add_argument("--ps_hosts", type=str, default="localhost:2222,localhost:2223", help="Comma-separated list of hostname:port pairs")
    parser.add_argument("--worker_hosts", type=str, default="localhost:2224,localhost:2225")
    parser.add_argument("--task_index", type=int, default=0)
    parser.add_argument("--optimizer", type=str, default="adagrad")
    parser.add_argument("--master", type=str, default="")
    FLAGS, unparsed = parser.parse_known_args()
    tf.app.run(main=main, argv=[sys.argv[0]] + unparsed)
