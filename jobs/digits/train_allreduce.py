"""Train the network of train.py data-parallel: a replica on every worker, gradients averaged by all-reduce, no ps tasks.

    python jobs/digits/train_allreduce.py                             # one process hosts all workers
    mpirun -n 2 python jobs/digits/train_allreduce.py                 # one worker a rank; fewer ranks host several
    mpirun -n 4 python jobs/digits/train_allreduce.py --workers 4
    mpirun -n 2 python jobs/digits/train_allreduce.py --servers       # rank 0 is the client, the others only serve

All replicas begin with the same values and add the same mean gradients, so they stay equal, and the losses are those of one
process that trains on the whole batch, but for rounding.
"""

from __future__ import annotations

import argparse
import time

import data
import model
import numpy as np
from report import traffic_line
from tqdm import tqdm

import mpirt as tf


def main() -> None:
    """Build the graph, then train: on all ranks together, or as the client of the other ranks' servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="number of worker tasks")
    parser.add_argument("--servers", action="store_true", help="run servers, with one client, instead of a session on all ranks")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128, help="images in a batch, over all workers")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--losses", metavar="FILE", help="write the loss of every step to FILE (.npy)")
    args = parser.parse_args()
    if args.batch % args.workers:
        parser.error(f"--batch {args.batch} can't be shared equally by {args.workers} workers")

    cluster = tf.cluster({"worker": args.workers})
    if not args.servers:
        train(cluster, args)
        return
    servers = [tf.train.Server(cluster.spec, job_name=task.job, task_index=task.index) for task in cluster.tasks]
    if cluster.rank == 0:
        train(cluster, args, servers[0].target)
    for server in servers:
        server.join()


class Replicas:
    """The graph: a network on each worker, and one step that trains all of them alike."""

    def __init__(self, args: argparse.Namespace) -> None:
        optimizer = tf.train.MomentumOptimizer(args.learning_rate, 0.9)
        share = args.batch // args.workers
        self.images, self.labels, losses, gradients, layers = [], [], [], [], []
        for i in range(args.workers):
            with tf.device(f"/job:worker/task:{i}"), tf.variable_scope(f"replica{i}"):
                layers.append(model.variables())
                self.images.append(tf.placeholder(tf.float32, [share, 64], "images"))
                self.labels.append(tf.placeholder(tf.int64, [share], "labels"))
                losses.append(model.mean_loss(model.network(self.images[i], layers[i]), self.labels[i]))
                variables = [variable for layer in layers[i] for variable in layer]
                gradients.append(optimizer.compute_gradients(losses[i], variables))
        averaged = [tf.collective.all_reduce([gradient for gradient, _ in towers], "mean") for towers in zip(*gradients, strict=True)]
        updates = []
        for i, own in enumerate(gradients):
            with tf.device(f"/job:worker/task:{i}"):
                mine = [(means[i], variable) for means, (_, variable) in zip(averaged, own, strict=True)]
                updates.append(optimizer.apply_gradients(mine))
        self.loss = tf.collective.all_reduce(losses, "mean")[0]
        with tf.device("/job:worker/task:0"):
            self.train = tf.group(*updates)
            self.test_images = tf.placeholder(tf.float32, [None, 64], "test_images")
            self.test_labels = tf.placeholder(tf.int64, [None], "test_labels")
            self.accuracy = model.fraction_correct(model.network(self.test_images, layers[0]), self.test_labels)
        self.initialize = tf.global_variables_initializer()


def train(cluster: tf.Cluster, args: argparse.Namespace, target: str = "") -> None:
    """Train, test, report."""
    digits = data.load(args.seed)
    tf.set_random_seed(args.seed)
    graph = Replicas(args)
    history, share = [], args.batch // args.workers
    batches = len(digits.train_labels) // args.batch
    rng = np.random.default_rng(args.seed)
    with tf.Session(target) as session:
        session.run(graph.initialize)
        fetches, feeds = [graph.loss, graph.train], {}
        start = time.perf_counter()
        for _ in tqdm(range(args.epochs), unit="epoch", disable=True if cluster.rank else None):
            order = rng.permutation(len(digits.train_labels))
            for batch in range(batches):
                rows = order[batch * args.batch : (batch + 1) * args.batch]
                for i in range(args.workers):
                    feeds[graph.images[i]] = digits.train_images[rows[i * share : (i + 1) * share]]
                    feeds[graph.labels[i]] = digits.train_labels[rows[i * share : (i + 1) * share]]
                value, _ = session.run(fetches, feeds)
                history.append(value)
        seconds = time.perf_counter() - start
        result = session.run(graph.accuracy, {graph.test_images: digits.test_images, graph.test_labels: digits.test_labels})
        if cluster.rank == 0:
            print(cluster.describe())
            print(traffic_line(session.traffic(fetches, feeds)))
            print(f"trained   {args.epochs} epochs in {seconds:.2f} s, {len(history) * args.batch / seconds:,.0f} samples/s")
            print(f"loss      {history[0]:.4f} -> {history[-1]:.4f}")
            print(f"accuracy  {result:.4f} on {len(digits.test_labels)} test images")
    if args.losses and cluster.rank == 0:
        np.save(args.losses, np.array(history, np.float32))


if __name__ == "__main__":
    main()
