"""Threads that keep a queue filled: each runs an enqueue operation again and again until its input ends or a stop is asked for.

Neighbours: ``Coordinator`` stops them all and tells of the first error; ``ops.data_flow_ops`` has the queues. A runner holds
no session: it makes threads for each session that it is started with.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from mpirt import errors
from mpirt.graph.graph import GraphKeys, Operation, Tensor, add_to_collection
from mpirt.ops.apply import unimplemented
from mpirt.ops.data_flow_ops import QueueBase
from mpirt.session import BaseSession, get_default_session
from mpirt.train.coordinator import Coordinator

__all__ = ["QueueRunner", "add_queue_runner", "start_queue_runners"]

_log = logging.getLogger("mpirt")


class QueueRunner:
    """Enqueue operations of a queue, each to be run in a thread of its own.

    When the input of all of them has ended, ``close_op`` closes the queue, so that its consumers take the rest and then hear
    of the end too. When the coordinator is asked to stop, ``cancel_op`` closes it and ends the enqueues that wait.

    Parameters
    ----------
    queue : what the operations fill
    enqueue_ops : operations or tensors to run; one may be there several times, for as many threads
    close_op : by default ``queue.close()``
    cancel_op : by default ``queue.close(cancel_pending_enqueues=True)``
    queue_closed_exception_types : errors of an enqueue that mean the end of its input; by default OutOfRangeError
    queue_runner_def, import_scope : not supported

    Raises
    ------
    ValueError
        If there is no queue or no operation; TypeError if ``queue_closed_exception_types`` is no tuple of error classes.
    """

    def __init__(
        self,
        queue: QueueBase | None = None,
        enqueue_ops: Sequence[Operation | Tensor] | None = None,
        close_op: Operation | None = None,
        cancel_op: Operation | None = None,
        queue_closed_exception_types: tuple[type[errors.OpError], ...] | None = None,
        queue_runner_def: Any = None,
        import_scope: str | None = None,
    ) -> None:
        if queue_runner_def is not None or import_scope is not None:
            raise unimplemented("a QueueRunner from a QueueRunnerDef")
        if queue is None or not enqueue_ops:
            raise ValueError("Must provide queue and enqueue_ops.")
        kinds = (errors.OutOfRangeError,) if queue_closed_exception_types is None else queue_closed_exception_types
        if not isinstance(kinds, tuple) or not kinds or not all(isinstance(k, type) and issubclass(k, errors.OpError) for k in kinds):
            raise TypeError(f"queue_closed_exception_types must be a tuple of classes of tf.errors, not {kinds!r}.")
        self._queue = queue
        self._enqueue_ops = list(enqueue_ops)
        self._close_op = queue.close() if close_op is None else close_op
        self._cancel_op = queue.close(cancel_pending_enqueues=True) if cancel_op is None else cancel_op
        self._closed_types = kinds
        self._lock = threading.Lock()
        self._running: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # threads that run, by session
        self._exceptions: list[BaseException] = []

    @property
    def queue(self) -> QueueBase:
        """The queue that is filled."""
        return self._queue

    @property
    def enqueue_ops(self) -> list[Operation | Tensor]:
        """What the threads run."""
        return self._enqueue_ops

    @property
    def close_op(self) -> Operation:
        """What closes the queue when the input has ended."""
        return self._close_op

    @property
    def cancel_op(self) -> Operation:
        """What closes the queue when a stop is asked for."""
        return self._cancel_op

    @property
    def queue_closed_exception_types(self) -> tuple[type[errors.OpError], ...]:
        """Errors that mean the end of the input."""
        return self._closed_types

    @property
    def exceptions_raised(self) -> list[BaseException]:
        """What ended threads that have no coordinator to tell, since they were started last."""
        return self._exceptions

    @property
    def name(self) -> str:
        """Name of the queue."""
        return self._queue.name

    def create_threads(
        self, sess: Any, coord: Coordinator | None = None, daemon: bool = False, start: bool = False
    ) -> list[threading.Thread]:
        """Make the threads for a session: one for each enqueue operation, and with a coordinator one that waits for its stop.

        Parameters
        ----------
        sess : Session to run the operations in
        coord : asks the threads to stop, waits for them, and gets their errors
        daemon : whether the threads don't keep the program from ending
        start : start them too

        Returns
        -------
        The threads; none if those made for this session before still run
        """
        with self._lock:
            if self._running.get(sess, 0) > 0:
                return []
            self._running[sess] = len(self._enqueue_ops)
            self._exceptions = []
        prefix = f"QueueRunnerThread-{self.name}-"
        threads = [
            threading.Thread(target=self._run, args=(sess, op, coord), name=prefix + op.name, daemon=daemon) for op in self._enqueue_ops
        ]
        if coord is not None:
            threads.append(
                threading.Thread(target=self._close_on_stop, args=(sess, coord), name=f"{prefix}close_on_stop", daemon=daemon)
            )
        for thread in threads:
            if coord is not None:
                coord.register_thread(thread)
            if start:
                thread.start()
        return threads

    def _run(self, sess: Any, enqueue_op: Operation | Tensor, coord: Coordinator | None) -> None:
        """What a thread does."""
        ended: BaseException | None = None
        try:
            enqueue = sess.make_callable(enqueue_op)
            while coord is None or not coord.should_stop():
                enqueue()
        except BaseException as error:
            ended = error
        with self._lock:
            self._running[sess] -= 1
            is_last = self._running[sess] == 0
        if isinstance(ended, self._closed_types):
            if is_last:
                self._close(sess, self._close_op)
        elif ended is not None and coord is not None:
            coord.request_stop(ended)
        elif ended is not None:
            _log.error("a thread that runs %s for queue %r ended with %s: %s", enqueue_op.name, self.name, type(ended).__name__, ended)
            with self._lock:
                self._exceptions.append(ended)

    def _close_on_stop(self, sess: Any, coord: Coordinator) -> None:
        coord.wait_for_stop()
        self._close(sess, self._cancel_op)

    def _close(self, sess: Any, op: Operation) -> None:
        """Close the queue; if it is closed already, or the session is, there is nothing to close and nobody to tell."""
        try:
            sess.run(op)
        except Exception as error:
            _log.debug("%s of queue %r: %s: %s", op.name, self.name, type(error).__name__, error)


def add_queue_runner(qr: QueueRunner, collection: str = GraphKeys.QUEUE_RUNNERS) -> None:
    """Add a runner to a collection of the graph, for ``start_queue_runners``."""
    add_to_collection(collection, qr)


def start_queue_runners(
    sess: Any = None,
    coord: Coordinator | None = None,
    daemon: bool = True,
    start: bool = True,
    collection: str = GraphKeys.QUEUE_RUNNERS,
) -> list[threading.Thread]:
    """Start the threads of all queue runners of the session's graph.

    Parameters
    ----------
    sess : Session to run in; by default the default one
    coord : see ``QueueRunner.create_threads``
    daemon : whether the threads don't keep the program from ending
    start : False makes them only
    collection : name of the collection that holds the runners

    Returns
    -------
    The threads of all of them

    Raises
    ------
    ValueError
        If there is no session; TypeError if ``sess`` isn't one.
    """
    if sess is None:
        sess = get_default_session()
        if sess is None:
            raise ValueError(
                "Cannot start queue runners: there is no default session. Pass one, start_queue_runners(sess=sess), or use"
                " `with sess.as_default()`."
            )
    if not isinstance(sess, BaseSession):
        raise TypeError(f"sess must be a `tf.Session` object, not {sess!r}.")
    runners = sess.graph.get_collection(collection)
    if not runners:
        _log.warning("start_queue_runners() was called, but the graph has no queue runners.")
    with sess.graph.as_default():
        return [thread for qr in runners for thread in qr.create_threads(sess, coord=coord, daemon=daemon, start=start)]
