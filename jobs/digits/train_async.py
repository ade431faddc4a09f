"""Train the network of train.py asynchronously: ps tasks that only join, workers that each train at their own pace.

    python jobs/digits/train_async.py                                      # one process serves all tasks, a thread a worker
    mpirun -n 4 python jobs/digits/train_async.py                          # one task a rank; 2 and 3 ranks work too
    mpirun -n 4 python jobs/digits/train_async.py --ps 1 --workers 3

Each worker has its own replica of the graph and its own session on its own server. It reads the weights, computes the gradients
of a batch of its own, and the ps tasks apply them when they come, whatever the other workers did meanwhile. The staleness of an
update is the number of updates completed after the global step was read, which is before the weights are, and before its own
was completed: its gradients can have missed these and no others. Stale gradients act like momentum (Mitliagkas et al., "Asynchrony
begets momentum", 2016): with that of train.py on top, workers in step with each other, each two updates behind, learn nothing.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import data
import model
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import mpirt as tf
from mpirt.cluster.task import Task

MAX_STEP = np.iinfo(np.int64).max


def main() -> None:
    """Start the servers of this rank's tasks; train where they are workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ps", type=int, default=2, help="number of ps tasks")
    parser.add_argument("--workers", type=int, default=2, help="number of worker tasks")
    parser.add_argument("--epochs", type=int, default=45, help="over all workers")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch of one worker")
    parser.add_argument("--learning-rate", type=float, default=0.15, help="at the start; 0 at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--history", metavar="FILE", help="write worker, read, applied and loss of every update to FILE (.npz)")
    args = parser.parse_args()
    digits = data.load(args.seed)
    if not 0 < args.batch <= len(digits.train_labels):
        parser.error(f"--batch {args.batch}: there are {len(digits.train_labels)} images to train on")

    cluster = tf.cluster({"ps": args.ps, "worker": args.workers})
    servers = {task: tf.train.Server(cluster.spec, job_name=task.job, task_index=task.index) for task in cluster.tasks}

    coordinator = tf.train.Coordinator()

    def work(task: Task, server: tf.train.Server) -> None:
        with coordinator.stop_on_exception():
            train(task, server, cluster, digits, args)

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in servers.items() if item[0].job == "worker"]
    for thread in threads:
        thread.start()
    coordinator.join(threads, stop_grace_period_secs=5)
    for server in servers.values():
        server.join()


class Replica:
    """One worker's graph, in the default graph: variables and queues are the cluster's, the rest is the worker's own."""

    def __init__(self, task: Task, cluster: tf.Cluster, args: argparse.Namespace, updates: int) -> None:
        workers = cluster.spec.num_tasks("worker")
        with tf.device(tf.train.replica_device_setter(worker_device=str(task), cluster=cluster.spec)):
            layers = model.variables()
            self.step = tf.train.get_or_create_global_step()
            self.images = tf.placeholder(tf.float32, [None, 64], "images")
            self.labels = tf.placeholder(tf.int64, [None], "labels")

            self.read_at = self.step.read_value()
            with tf.control_dependencies([self.read_at]):
                values = [(weights.read_value(), biases.read_value()) for weights, biases in layers]
            logits = model.network(self.images, values)
            self.loss = model.mean_loss(logits, self.labels)
            gradients = tf.gradients(self.loss, [value for layer in values for value in layer])
            variables = [variable for layer in layers for variable in layer]
            rate = tf.train.polynomial_decay(args.learning_rate, self.read_at, updates, 0.0)
            optimizer = tf.train.GradientDescentOptimizer(rate, use_locking=True)  # stale gradients are momentum enough
            update = optimizer.apply_gradients(zip(gradients, variables, strict=True))
            with tf.control_dependencies([update]):
                # The step as it was and its increment in one: no two updates get the same number.
                self.applied_at = tf.count_up_to(self.step, MAX_STEP)

            self.accuracy = model.fraction_correct(logits, self.labels)
            self.initialize = tf.global_variables_initializer()

        with tf.device("/job:ps/task:0"):
            ready, start = (tf.FIFOQueue(workers, [tf.bool], [[]], shared_name=name, name=name) for name in ("ready", "start"))
            self.tell_ready, self.wait_for_ready = ready.enqueue(True), ready.dequeue()
            self.tell_start, self.wait_for_start = start.enqueue(True), start.dequeue()
            dtypes = [tf.int32, tf.int64, tf.int64, tf.float32]
            reports = tf.FIFOQueue(workers, dtypes, name="reports", shared_name="reports")
            self.history = [tf.placeholder(dtype) for dtype in dtypes]
            self.send_history, self.receive_history = reports.enqueue(self.history), reports.dequeue()


def train(task: Task, server: tf.train.Server, cluster: tf.Cluster, digits: data.Digits, args: argparse.Namespace) -> None:
    """What one worker does. Worker 0 also initialises, and reports when all have ended."""
    chief = task.index == 0
    updates = args.epochs * (len(digits.train_labels) // args.batch)
    with tf.Graph().as_default():
        tf.set_random_seed(args.seed)
        replica = Replica(task, cluster, args, updates)
        with tf.Session(server.target) as session, tqdm(total=updates, unit="update", disable=None if chief else True) as bar:
            if chief:
                session.run(replica.initialize)
                for message in [replica.wait_for_ready] * (args.workers - 1) + [replica.tell_start] * (args.workers - 1):
                    session.run(message)
            else:
                session.run(replica.tell_ready)
                session.run(replica.wait_for_start)

            start = time.perf_counter()
            steps = []
            applied_at = -1
            for rows in batches(len(digits.train_labels), args.batch, seed=[args.seed, task.index]):
                feeds = {replica.images: digits.train_images[rows], replica.labels: digits.train_labels[rows]}
                read_at, applied_at, loss = session.run([replica.read_at, replica.applied_at, replica.loss], feeds)
                steps.append((task.index, read_at, applied_at, loss))
                bar.update(int(applied_at) + 1 - bar.n)
                if applied_at + 1 >= updates:
                    break
            session.run(replica.send_history, dict(zip(replica.history, map(np.array, zip(*steps, strict=True)), strict=True)))

            if chief:
                history = History.of([session.run(replica.receive_history) for _ in range(args.workers)])
                seconds = time.perf_counter() - start
                final_step = session.run(replica.step)
                test = {replica.images: digits.test_images, replica.labels: digits.test_labels}
                accuracy = session.run(replica.accuracy, test)
    if chief:
        if args.history:
            np.savez(args.history, worker=history.worker, read=history.read, applied=history.applied, loss=history.loss)
        print(cluster.describe())
        print(f"trained   {final_step} updates in {seconds:.2f} s, {final_step * args.batch / seconds:,.0f} samples/s")
        for worker in range(args.workers):
            print(f"worker {worker}  {history.describe(history.worker == worker)}")
        print(f"together  {history.describe(history.worker >= 0)}")
        print(f"loss      {history.loss[0]:.4f} -> {history.loss[-1]:.4f}")
        print(f"accuracy  {accuracy:.4f} on {len(digits.test_labels)} test images")


def batches(num_examples: int, size: int, seed: list[int]) -> Iterator[NDArray[np.int64]]:
    """Rows of batches without end, in another order each epoch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(num_examples)
        for end in range(size, num_examples + 1, size):
            yield order[end - size : end]


@dataclass(frozen=True)
class History:
    """Every update, in the order of application: by whom, the global step as read and as it was when applied, the loss."""

    worker: NDArray[np.int32]
    read: NDArray[np.int64]
    applied: NDArray[np.int64]
    loss: NDArray[np.float32]

    @classmethod
    def of(cls, parts: list[list[NDArray[np.generic]]]) -> History:
        """The histories of all workers, as one."""
        worker, read, applied, loss = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(applied)
        return cls(worker[order], read[order], applied[order], loss[order])

    def describe(self, chosen: NDArray[np.bool_]) -> str:
        """Number and staleness of the chosen updates."""
        staleness = (self.applied - self.read)[chosen]
        return f"{len(staleness)} updates, staleness mean {staleness.mean():.2f}, max {staleness.max()}"


if __name__ == "__main__":
    main()
