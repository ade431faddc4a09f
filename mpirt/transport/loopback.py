"""The transport within one process: no MPI, ranks are objects, usually one thread each.

``LoopbackTransport()`` alone is the one rank of ``python train.py`` without a launcher. ``LoopbackWorld(n)`` gives tests n
ranks, with MPI's rules of matching, order and truncation.

``LoopbackWorld(n, seed=...)`` is an adversary that keeps to those rules and to nothing else: messages of different sources and
tags overtake each other, every other send completes only when its receive has come (so what the sender writes into its
buffer too early does harm), and a receive buffer holds garbage until its message is there.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from mpirt import config
from mpirt.errors import AbortedError, InternalError
from mpirt.transport.base import PENDING, Buffer, ControlMessage, Counters, Prepared, Request, as_bytes, chunk_count

_LONGEST_DELAY = 40  # tests and polls of the whole world that an adversary's message may have to wait for
_GARBAGE = 0xFF  # as floating point: NaN


class _Send:
    """A send; complete at once when its bytes were copied, else when they have been received."""

    __slots__ = ("_world", "_nbytes", "done")

    def __init__(self, world: LoopbackWorld, nbytes: int) -> None:
        self._world = world
        self._nbytes = nbytes
        self.done = False

    def test(self) -> bool:
        if not self.done:
            self._world.progress()
        return self.done

    def nbytes(self) -> int:
        return self._nbytes

    def cancel(self) -> bool:
        return False


class _Receive:
    """A posted receive."""

    __slots__ = ("_owner", "_key", "content", "received", "error", "_complete")

    def __init__(self, owner: LoopbackTransport, key: _Key, content: npt.NDArray[np.uint8]) -> None:
        self._owner = owner
        self._key = key
        self.content = content
        self.received = -1  # bytes, once matched
        self.error = ""
        self._complete = False

    def test(self) -> bool:
        if self._complete:
            return True
        if self.received < 0:
            self._owner.world.progress()
        if self.received < 0:
            return False
        if self.error:
            raise InternalError(self.error, hint="sender and receiver disagree on the plan; please report this.")
        self._complete = True
        self._owner.counters.messages_received += 1
        self._owner.counters.bytes_received += self.received
        return True

    def nbytes(self) -> int:
        assert self._complete, "nbytes() of a receive that isn't complete"
        return self.received

    def cancel(self) -> bool:
        return self._owner.world.withdraw(self._key, self)


class _Prepared:
    """A send or receive that is made anew at every start."""

    __slots__ = ("_make", "_request")

    def __init__(self, make: Callable[[], Request]) -> None:
        self._make = make
        self._request: Request | None = None

    def start(self) -> None:
        assert self.test(), "a prepared message was started again before it was complete"
        self._request = self._make()

    def test(self) -> bool:
        return self._request is None or self._request.test()

    def soon(self, looks: range) -> int:
        return self.nbytes() if any(self.test() for _ in looks) else PENDING

    def nbytes(self) -> int:
        return 0 if self._request is None else self._request.nbytes()

    def cancel(self) -> bool:
        return self._request is not None and self._request.cancel()


class _Key(NamedTuple):
    source: int
    dest: int
    tag: int

    def __str__(self) -> str:
        return f"tag {self.tag} from rank {self.source} to rank {self.dest}"


class _Message(NamedTuple):
    due: int
    content: npt.NDArray[np.uint8]
    expected_nbytes: int
    request: _Send


@dataclass(slots=True)
class _Channel:
    """Messages and receives of one key that wait for each other, in order."""

    messages: deque[_Message] = field(default_factory=deque)
    receives: deque[_Receive] = field(default_factory=deque)

    def match(self, key: _Key, now: int) -> None:
        while self.messages and self.receives and self.messages[0].due <= now:
            message, receive = self.messages.popleft(), self.receives.popleft()
            nbytes, room = len(message.content), len(receive.content)
            if nbytes > room:
                receive.error = f"{key}: a message of {nbytes} bytes came to a receive of {room} bytes."
            elif chunk_count(message.expected_nbytes) != chunk_count(room):
                receive.error = (
                    f"{key}: the sender counts on a receive of {message.expected_nbytes} bytes, which takes "
                    f"{chunk_count(message.expected_nbytes)} messages; it is of {room} bytes, {chunk_count(room)} messages."
                )
            else:
                receive.content[:nbytes] = message.content
            receive.received = nbytes
            message.request.done = True


class LoopbackWorld:
    """``size`` ranks in one process.

    Parameters
    ----------
    size : number of ranks
    seed : makes the world an adversary (see the module) that decides by this seed
    """

    def __init__(self, size: int, *, seed: int | None = None) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._random = None if seed is None else random.Random(seed)
        self._now = 0  # an adversary's clock: tests and polls so far
        self._channels: defaultdict[_Key, _Channel] = defaultdict(_Channel)  # those with something in them
        self._control: list[deque[tuple[int, ControlMessage]]] = [deque() for _ in range(size)]  # due, message
        self._killed: set[int] = set()
        self._aborted = ""
        self._transports = [LoopbackTransport(rank, self) for rank in range(size)]

    def transport(self, rank: int) -> LoopbackTransport:
        """The transport of ``rank``, always the same object."""
        return self._transports[rank]

    def kill(self, rank: int) -> None:
        """Have ``rank`` appear dead to the others, as if its process were gone."""
        self._killed.add(rank)

    def alive(self, rank: int) -> bool:
        """Whether ``rank`` was not killed."""
        return rank not in self._killed

    def abort(self, rank: int, code: int) -> NoReturn:
        """End the world: what any rank does from now on raises AbortedError."""
        self._aborted = self._aborted or f"rank {rank} of {self.size} aborted the job with exit status {code}."
        raise AbortedError(self._aborted)

    def post(self, source: int, dest: int, tag: int, content: npt.NDArray[np.uint8], expected_nbytes: int) -> _Send:
        """Send ``content``."""
        with self._lock:
            self._check()
            key, request = _Key(source, dest, tag), _Send(self, len(content))
            message = _Message(self._due(), content, expected_nbytes, request)
            self._channels[key].messages.append(message)
            self._match(key)
            if not request.done and (self._random is None or self._random.random() < 0.5):
                self._channels[key].messages[-1] = message._replace(content=content.copy())
                request.done = True
            return request

    def receive(self, owner: LoopbackTransport, source: int, tag: int, content: npt.NDArray[np.uint8]) -> _Receive:
        """Post a receive."""
        with self._lock:
            self._check()
            if self._random is not None:
                content.fill(_GARBAGE)
            key = _Key(source, owner.rank, tag)
            request = _Receive(owner, key, content)
            self._channels[key].receives.append(request)
            self._match(key)
            return request

    def progress(self) -> None:
        """Let time pass for the messages under way."""
        with self._lock:
            self._check()
            self._tick()

    def withdraw(self, key: _Key, request: _Receive) -> bool:
        """Take a posted receive back, if no message has matched it."""
        with self._lock:
            if request.received >= 0:
                return False
            if request in self._channels[key].receives:
                self._channels[key].receives.remove(request)
            self._match(key)
            return True

    def post_control(self, dest: int, message: ControlMessage) -> None:
        """Send a control message."""
        with self._lock:
            self._check()
            self._control[dest].append((self._due(), message))

    def poll_control(self, rank: int) -> ControlMessage | None:
        """The first control message to ``rank`` that is due, unless one of the same source is ahead of it."""
        queue = self._control[rank]
        if not queue and not self._aborted:
            return None
        with self._lock:
            self._check()
            self._tick()
            blocked: set[int] = set()
            for i, (due, message) in enumerate(queue):
                if due <= self._now and message.source not in blocked:
                    del queue[i]
                    return message
                blocked.add(message.source)
            return None

    def _match(self, key: _Key) -> None:
        channel = self._channels[key]
        channel.match(key, self._now)
        if not channel.messages and not channel.receives:
            del self._channels[key]

    def _due(self) -> int:
        return 0 if self._random is None else self._now + self._random.choice((0, self._random.randrange(_LONGEST_DELAY)))

    def _tick(self) -> None:
        if self._random is not None:
            self._now += 1
            for key in list(self._channels):
                self._match(key)

    def _check(self) -> None:
        if self._aborted:
            raise AbortedError(self._aborted)


class LoopbackTransport:
    """One rank of a `LoopbackWorld`; without arguments, the only rank of one of its own. See `base.Transport`."""

    name = "loopback"
    max_tag = 2**29 - 1  # that of MPICH, the smaller of the two that are tested

    def __init__(self, rank: int = 0, world: LoopbackWorld | None = None) -> None:
        self.rank = rank
        self.world = world if world is not None else LoopbackWorld(1)
        self.size = self.world.size
        self.hosts = (socket.gethostname(),) * self.size
        self.pids = (os.getpid(),) * self.size
        alone = not config.get("MPIRT_SHM") or not hasattr(os, "memfd_create")
        self.memory = tuple(range(self.size)) if alone else (0,) * self.size
        self.crowded = False  # ranks are threads here: they share the interpreter, not cores
        self.counters = Counters()
        self._kept: deque[Request] = deque()

    def isend(self, buffer: Buffer, dest: int, tag: int, expected_nbytes: int | None = None) -> _Send:
        """See `base.Transport`."""
        self._require(buffer, dest, tag)
        request = self.world.post(
            self.rank, dest, tag, as_bytes(buffer), buffer.nbytes if expected_nbytes is None else expected_nbytes
        )
        self.counters.messages_sent += 1
        self.counters.bytes_sent += buffer.nbytes
        return request

    def irecv(self, buffer: Buffer, source: int, tag: int) -> _Receive:
        """See `base.Transport`."""
        self._require(buffer, source, tag)
        return self.world.receive(self, source, tag, as_bytes(buffer))

    def prepare_send(self, buffer: Buffer, dest: int, tag: int) -> _Prepared:
        """See `base.Transport`."""
        self._require(buffer, dest, tag)
        return _Prepared(lambda: self.isend(buffer, dest, tag))

    def prepare_receive(self, buffer: Buffer, source: int, tag: int) -> _Prepared:
        """See `base.Transport`."""
        self._require(buffer, source, tag)
        return _Prepared(lambda: self.irecv(buffer, source, tag))

    def start_all(self, receives: Sequence[Prepared]) -> None:
        """See `base.Transport`."""
        for receive in receives:
            receive.start()

    def test_all(self, sends: Sequence[Prepared]) -> bool:
        """See `base.Transport`."""
        return all([send.test() for send in sends])

    def release(self, requests: Iterable[Prepared]) -> None:
        """See `base.Transport`. Nothing to free."""

    def keep(self, sends: Iterable[Request]) -> None:
        """See `base.Transport`. A message's buffer is held by the receiver's end, a window by nobody else."""
        self._kept.extend(sends)

    def send_control(self, dest: int, payload: bytes, kind: int = 0) -> None:
        """See `base.Transport`."""
        self.world.post_control(dest, ControlMessage(self.rank, kind, bytes(payload)))
        self.counters.control_sent += 1

    def poll_control(self) -> ControlMessage | None:
        """See `base.Transport`."""
        for _ in range(len(self._kept)):
            try:
                send = self._kept.popleft()
            except IndexError:  # another thread is at it
                break
            if not send.test():
                self._kept.append(send)
        message = self.world.poll_control(self.rank)
        if message is not None:
            self.counters.control_received += 1
        return message

    def peer_alive(self, rank: int) -> bool:
        """False after `LoopbackWorld.kill`."""
        return self.world.alive(rank)

    def check_peers(self, ranks: Iterable[int]) -> int | None:
        """See `base.Transport`."""
        return next(itertools.filterfalse(self.world.alive, ranks), None)

    def all_leaving(self, timeout_s: float) -> bool:
        """True: threads of one process leave together."""
        return True

    def abort(self, code: int = 1) -> NoReturn:
        """Raise AbortedError, here and in whatever other ranks of this world do next."""
        self.world.abort(self.rank, code)

    def exit(self, code: int = 1) -> NoReturn:
        """As `abort`: threads end together."""
        self.world.abort(self.rank, code)

    def finalize(self) -> None:
        """Nothing to leave."""

    def _require(self, buffer: Buffer, peer: int, tag: int) -> None:
        """What MPI would not forgive, or take silently in another sense."""
        assert buffer.flags.c_contiguous, "buffers of messages are C-contiguous"
        assert 0 <= peer < self.size, f"rank {peer} of {self.size}"
        assert 0 <= tag <= self.max_tag, f"tag {tag} is outside 0-{self.max_tag}"
