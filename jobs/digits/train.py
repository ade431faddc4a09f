"""Train a network 64-256-128-10 on handwritten digits: parameters on 2 ps tasks, half of each batch on each of 2 workers.

    python jobs/digits/train.py                  # one process hosts all four tasks
    mpirun -n 4 python jobs/digits/train.py      # one task a rank; 2 and 6 ranks work too

Every rank runs this script; each runs the operations of its own tasks, and tensors cross by MPI. The numbers are the same
whatever the number of ranks.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import data
import model
import numpy as np
from report import traffic_line
from tqdm import tqdm

import mpirt as tf


def main() -> None:
    """Build the graph, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128, help="images in a batch, over all workers")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--losses", metavar="FILE", help="write the loss of every step to FILE (.npy)")
    args = parser.parse_args()

    cluster = tf.cluster({"ps": 2, "worker": 2})
    workers = cluster.spec.num_tasks("worker")
    share = args.batch // workers
    digits = data.load(args.seed)

    tf.set_random_seed(args.seed)
    with tf.device(tf.train.replica_device_setter(cluster=cluster.spec)):
        layers = model.variables()
        step = tf.train.get_or_create_global_step()
    optimizer = tf.train.MomentumOptimizer(args.learning_rate, 0.9)
    images, labels, losses, gradients = [], [], [], []
    for i in range(workers):
        with tf.device(f"/job:worker/task:{i}"), tf.name_scope(f"tower{i}"):
            images.append(tf.placeholder(tf.float32, [share, 64], "images"))
            labels.append(tf.placeholder(tf.int64, [share], "labels"))
            losses.append(model.mean_loss(model.network(images[i], layers), labels[i]))
            gradients.append(optimizer.compute_gradients(losses[i]))
    averaged = []
    for towers in zip(*gradients, strict=True):
        variable = towers[0][1]
        with tf.device(variable.device):  # the average is made where it is used
            averaged.append((tf.add_n([gradient for gradient, _ in towers]) / workers, variable))
    train = optimizer.apply_gradients(averaged, global_step=step)
    with tf.device("/job:worker/task:0"):
        loss = tf.add_n(losses) / workers
        test_images = tf.placeholder(tf.float32, [None, 64], "test_images")
        test_labels = tf.placeholder(tf.int64, [None], "test_labels")
        accuracy = model.fraction_correct(model.network(test_images, layers), test_labels)

    history = []
    batches = len(digits.train_labels) // args.batch
    rng = np.random.default_rng(args.seed)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        fetches, feeds = [loss, train], {}
        start = time.perf_counter()
        for _ in tqdm(range(args.epochs), unit="epoch", disable=True if cluster.rank else None):
            order = rng.permutation(len(digits.train_labels))
            for batch in range(batches):
                rows = order[batch * args.batch : (batch + 1) * args.batch]
                for i in range(workers):
                    feeds[images[i]] = digits.train_images[rows[i * share : (i + 1) * share]]
                    feeds[labels[i]] = digits.train_labels[rows[i * share : (i + 1) * share]]
                value, _ = session.run(fetches, feeds)
                history.append(value)
        seconds = time.perf_counter() - start
        result = session.run(accuracy, {test_images: digits.test_images, test_labels: digits.test_labels})
        if cluster.rank == 0:
            report(cluster, session, fetches, feeds)
            print(f"trained   {args.epochs} epochs in {seconds:.2f} s, {len(history) * share * workers / seconds:,.0f} samples/s")
            print(f"loss      {history[0]:.4f} -> {history[-1]:.4f}")
            print(f"accuracy  {result:.4f} on {len(digits.test_labels)} test images")
    if args.losses and cluster.rank == 0:
        np.save(args.losses, np.array(history, np.float32))


def report(cluster: tf.Cluster, session: tf.Session, fetches: list[object], feeds: dict[tf.Tensor, object]) -> None:
    """Print who ran what, and what crossed ranks."""
    print(cluster.describe())
    devices = Counter(session.placement().values())
    print("placement", ", ".join(f"{count} operations on {device}" for device, count in sorted(devices.items())))
    print(traffic_line(session.traffic(fetches, feeds)))


if __name__ == "__main__":
    main()
