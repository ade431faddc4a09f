"""Memory that two ranks of one host share: a window for each large tensor in flight.

The sender writes a tensor into a `Window` and tells which; the receiver opens it once (a `WindowView`), uses
the array where it lies, and hands it back when nobody holds it any more. One copy, or none if the tensor was produced there.
A receiver whose answer is the very tensor *returns* it (`returned_in`): the sender finds it in its own window, without a copy.

Why not MPI_Win_allocate_shared: such a window is made by all ranks of a host together, but programs are compiled at any time
by some ranks only, and both MPIs put it into files (/dev/shm, /tmp) that are small in containers, kill by SIGBUS when they are
full, and outlive a ``kill -9``. A window here is a memfd: memory without a name, made by its sender alone when it is first
needed. Guarantees:

- nothing is left behind, however a process ends: the kernel frees the memory with its last user;
- no SIGBUS: all pages are there before the first byte is written (posix_fallocate), and the file is sealed against shrinking.
  If the memory isn't to be had, ``Window`` raises OSError and the tensor travels as a message;
- the receiver opens ``/proc/PID/fd/N``, which needs the same process namespace and user. At the start every rank tries it with
  every other rank of its host (`Beacon`); the ranks that all see each other have the same number in ``Transport.memory``, and
  only between such ranks are windows used. Afterwards only running out of descriptors or address space can fail: a descriptor
  is held in reserve for that, and a window that can't be mapped is read like a file (`read_window`);
- the descriptor is closed once the receiver has mapped the window, when the sender looks at it next, so windows use up no
  descriptors (libc's mmap is called for that: Python's keeps one for each mapping).

Ownership is one word in the window's header, which only its owner of the moment changes: FREE (the sender's), FULL (on its way),
HELD (the receiver's). How often the receiver returned the tensor and how often the sender accepted it are two more: while they
differ the window is not free either. Order of memory: what is written before a message is sent is seen after it was received,
as with any two processes that talk by messages, and so it is with what goes through ``boxes``. On the way back there is no
message: the word says it. x86 keeps loads before later stores; for others `_fence` takes and releases a lock twice, which orders
them by the rules of locks (release, then acquire of the same lock).

Large windows lie in pages of 2 MiB from their third tensor on (MADV_COLLAPSE, Linux 6.1): to copy 16 MiB into pages of 4 KiB
takes about twice as long, since the processor can't remember where so many pages are. Not earlier, since making them costs as
much as some copies. Where the system doesn't give them nothing else changes.

Owns: the memory, whose it is. Does not own: which tensors go this way (``compiler.program.path_of``), the messages
(``runtime.windows``). Background: memfd_create(2), proc_pid_fd(5), fcntl(2) on seals.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import math
import mmap
import os
import platform
import secrets
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mpirt import config

FREE: Final = 0
FULL: Final = 1
HELD: Final = 2
_STATE, _OPENED, _SERIAL, _RETURNED, _ACCEPTED = 0, 8, 16, 24, 32  # words of the header; each in a cache line of its own
_PAGE_NBYTES = mmap.PAGESIZE  # the header has one, behind the tensor, which is aligned as its pages are
_HUGE_NBYTES = 2 << 20
_LARGE_NBYTES = 2 * _HUGE_NBYTES  # smaller windows gain nothing by large pages: the processor remembers all of their small ones
_MADV_COLLAPSE = 25  # madvise(2)
_COLLAPSE_AT = 3  # the tensor with which a window gets large pages

_serials = itertools.count(1)
_lock = threading.Lock()


def _fence() -> None:
    """All loads before come before all stores after it."""
    with _lock:
        pass
    with _lock:
        pass


_NEEDS_FENCE = platform.machine().lower() not in ("x86_64", "amd64")


class Window:
    """The sender's end.

    Parameters
    ----------
    shape, dtype : of the tensors that it is for

    Attributes
    ----------
    array : to write the tensor into, while the window is the sender's
    serial : number of the window, unlike that of any other of this process
    descriptor : under which the receiver finds it in this process

    Raises
    ------
    OSError
        If there is not enough memory, or the system has no such thing.
    """

    __slots__ = ("array", "serial", "descriptor", "_mapping", "_header", "_fills", "__weakref__")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.descriptor = -1
        nbytes = _file_nbytes(shape, dtype)
        _forget_free_windows()
        _require_memory(nbytes)
        self.serial = next(_serials)
        self.descriptor = os.memfd_create("mpirt-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.descriptor, 0, nbytes)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._mapping = _Mapping(self.descriptor, nbytes)
        except OSError:
            self._close()
            raise
        self._header = self._mapping.header()
        self._header[_SERIAL] = self.serial
        self._fills = 0
        self.array: npt.NDArray[Any] = np.asarray(_Part(self._mapping, 0, shape, dtype))
        _windows[self.serial] = self

    def __del__(self) -> None:
        if _STATE is None or sys.is_finalizing():  # at the end of the interpreter names are None, here or in modules that this one uses
            return
        # Nobody will fill it again; it stays until nobody can return its tensor either, or still has to open it. The garbage collector
        # has cleared weak references by now.
        if hasattr(self, "_header") and not self.free:
            _windows[self.serial] = _abandoned[self.serial] = self
            _forget_free_windows()
        else:
            self._close()

    @property
    def state(self) -> int:
        """Whose it is: FREE, FULL or HELD."""
        if self.descriptor >= 0 and self._header[_OPENED]:
            self._close()
        return self._header[_STATE]

    @property
    def free(self) -> bool:
        """Whether it is the sender's, and no return of its tensor is under way."""
        if self.state != FREE:
            return False
        if _NEEDS_FENCE:
            _fence()
        return self._header[_RETURNED] == self._header[_ACCEPTED]

    def references(self) -> int:
        """How many hold `array` or a view of it; `SOLE_HOLDER` if only the window does."""
        return sys.getrefcount(self.array)

    def holds(self, array: npt.NDArray[Any]) -> bool:
        """Whether ``array`` is the tensor in it, or a view of all of it."""
        own = self.array
        return array is own or array.base is own and array.nbytes == own.nbytes and array.flags.c_contiguous

    def fill(self) -> None:
        """It holds a tensor now: no longer the sender's."""
        self._fills += 1
        if self._fills == _COLLAPSE_AT:
            self._mapping.collapse()
        self._header[_STATE] = FULL

    def accept(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The tensor that came back to its sender, read-only, in the form in which it came; once for each `returned_in`."""
        array = self.array
        array = array.view() if array.shape == shape and array.dtype == dtype else array.reshape(-1).view(dtype).reshape(shape)
        array.flags.writeable = False
        with _lock:
            self._header[_ACCEPTED] += 1
        return array

    def _close(self) -> None:
        # Threads may meet here, and the garbage collector in any of them, so no lock: nothing runs between this look and the change.
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_windows: weakref.WeakValueDictionary[int, Window] = weakref.WeakValueDictionary()
_abandoned: dict[int, Window] = {}  # their transfers are gone, but the tensor in them may still be taken or come back


def window_of(serial: int) -> Window:
    """This process's window of that number."""
    return _windows[serial]


def _forget_free_windows() -> None:
    for serial in list(_abandoned):  # of items it would be garbage collected meanwhile, which may abandon more
        window = _abandoned.get(serial)
        if window is not None and window.free:
            _abandoned.pop(serial, None)
            window._close()


def _references_of_a_sole_holder() -> int:
    window = Window.__new__(Window)
    window.descriptor = -1
    window.array = np.empty(0)
    return window.references()


SOLE_HOLDER: Final = _references_of_a_sole_holder()


class WindowView:
    """The receiver's end, opened once.

    Parameters
    ----------
    pid, descriptor, serial : the sender's process, and its window there
    shape, dtype : as the sender's
    readonly : False if both sides write (`board`)

    Raises
    ------
    OSError
        If it can't be opened or mapped.
    """

    __slots__ = ("pid", "serial", "nbytes", "_header", "_interface")

    def __init__(
        self, pid: int, descriptor: int, serial: int, shape: tuple[int, ...], dtype: np.dtype[Any], readonly: bool = True
    ) -> None:
        nbytes = _file_nbytes(shape, dtype)
        with _opened(pid, descriptor, serial, nbytes) as file:
            mapping = _Mapping(file, nbytes)
        self.pid = pid
        self.serial = serial
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._header = mapping.header()
        self._header[_OPENED] = 1
        self._interface = _Part(mapping, 0, shape, dtype, readonly).__array_interface__

    def take(self) -> npt.NDArray[Any]:
        """The tensor where it lies. The window goes back to the sender when nobody holds the array or a view of it."""
        lease = _Lease()
        lease.view = self
        lease.header = header = self._header
        lease.__array_interface__ = self._interface
        header[_STATE] = HELD
        return np.asarray(lease)

    def give_back(self) -> None:
        """Nobody wants the tensor."""
        self._header[_STATE] = FREE


def returned_in(array: npt.NDArray[Any], pid: int) -> int:
    """Number of the window of process ``pid`` in which ``array`` lies, whole: it is returned with the message that tells of it.

    0 if it doesn't lie in one. The window stays as it is until the message has come (`Window.accept`).
    """
    base: Any = array.base
    if base.__class__ is np.ndarray:  # a view of what `WindowView.take` gave
        base = base.base
    if base.__class__ is not _Lease:
        return 0
    view: WindowView = base.view
    if view.pid != pid or view.nbytes != array.nbytes or not array.flags.c_contiguous:
        return 0
    with _lock:
        base.header[_RETURNED] += 1
    return view.serial


def read_window(
    pid: int, descriptor: int, serial: int, shape: tuple[int, ...], dtype: np.dtype[Any], array: npt.NDArray[Any] | None = None
) -> None:
    """Give back a window that isn't mapped, once its tensor was read into ``array``, if given.

    Raises
    ------
    OSError
        If it can't even be opened.
    """
    nbytes = _file_nbytes(shape, dtype)
    with _opened(pid, descriptor, serial, nbytes) as file:
        try:
            if array is not None:
                left, at = array.reshape(-1).view(np.uint8).data, 0
                while left:
                    done = os.preadv(file, [left], at)
                    left, at = left[done:], at + done
        finally:
            os.pwrite(file, FREE.to_bytes(8, sys.byteorder), nbytes - _PAGE_NBYTES + 8 * _STATE)


class _Lease:
    """What an array in a window and all its views hold on to. Its attributes are set by `WindowView.take`, which is faster so."""

    __slots__ = ("view", "header", "__array_interface__")
    view: WindowView
    header: memoryview  # it holds the mapping
    __array_interface__: dict[str, Any]

    def __del__(self) -> None:
        if _NEEDS_FENCE:
            _fence()
        self.header[_STATE] = FREE


_reserve: list[int] = []  # a descriptor for the moment in which a window is opened, when the process has used up all others


def hold_in_reserve() -> None:
    """Have a descriptor at hand for opening windows."""
    if not _reserve:
        with contextlib.suppress(OSError):
            _reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


@contextlib.contextmanager
def _opened(pid: int, descriptor: int, serial: int, nbytes: int) -> Iterator[int]:
    """A descriptor of the file that another process's window is."""
    path, flags = f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC
    try:
        opened = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EMFILE or not _reserve:
            raise
        os.close(_reserve.pop())
        opened = os.open(path, flags)
    try:
        size = os.fstat(opened).st_size
        found = os.pread(opened, 8, nbytes - _PAGE_NBYTES + 8 * _SERIAL) if size == nbytes else b""
        if int.from_bytes(found, sys.byteorder) != serial or not serial:
            raise OSError(f"descriptor {descriptor} of process {pid} is not the window number {serial}.")
        yield opened
    finally:
        os.close(opened)
        hold_in_reserve()


def _file_nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Of a window: whole pages for the tensor, and one for the header."""
    return -(-math.prod(shape) * dtype.itemsize // _PAGE_NBYTES) * _PAGE_NBYTES + _PAGE_NBYTES


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FIXED = 0x10  # the same on every Linux processor that Python runs on
_MAP_FAILED = ctypes.c_void_p(-1).value


class _Mapping:
    """A file in memory, as long as anybody holds this."""

    __slots__ = ("address", "_nbytes", "_munmap")

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self._munmap = _libc.munmap  # still at hand when the interpreter ends
        self._nbytes = 0
        access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        if nbytes < _LARGE_NBYTES:
            self.address: int = _mmap(None, nbytes, access, flags, descriptor)
        else:  # where large pages fit: address space for one more is asked for, and what is too much of it given back
            start = _mmap(None, nbytes + _HUGE_NBYTES, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
            self.address = start + -start % _HUGE_NBYTES
            for first, end in ((start, self.address), (self.address + nbytes, start + nbytes + _HUGE_NBYTES)):
                if first < end:
                    _libc.munmap(first, end - first)
            try:
                _mmap(self.address, nbytes, access, flags | _MAP_FIXED, descriptor)
            except OSError:
                _libc.munmap(self.address, nbytes)
                raise
        self._nbytes = nbytes

    def __del__(self) -> None:
        if self._nbytes:
            self._munmap(self.address, self._nbytes)

    def header(self) -> memoryview:
        offset = self._nbytes - _PAGE_NBYTES
        return np.asarray(_Part(self, offset, (_PAGE_NBYTES // 8,), np.dtype(np.uint64))).data

    def collapse(self) -> None:
        """Have large pages, if it is large and the system has some: all who have it mapped then do."""
        if self._nbytes >= _LARGE_NBYTES:
            _libc.madvise(self.address, self._nbytes // _HUGE_NBYTES * _HUGE_NBYTES, _MADV_COLLAPSE)


def _mmap(address: int | None, nbytes: int, access: int, flags: int, descriptor: int) -> int:
    start: int = _libc.mmap(address, nbytes, access, flags, descriptor, 0)
    if start == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return start


class _Part:
    """An array in a mapping, for numpy, which holds on to this."""

    __slots__ = ("mapping", "__array_interface__")

    def __init__(self, mapping: _Mapping, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], readonly: bool = False) -> None:
        self.mapping = mapping
        data = (mapping.address + offset, readonly)
        self.__array_interface__ = {"shape": shape, "typestr": dtype.str, "data": data, "version": 3}


def _require_memory(nbytes: int) -> None:
    """Refuse a window that would take more than half of the memory that is left on this host or in this container."""
    left = _memory_left()
    if nbytes > left // 2:
        raise OSError(f"{nbytes} bytes of shared memory are more than half of the {left} bytes that are left here.")


def _memory_left() -> int:
    left = 2**63
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            folder = Path("/sys/fs/cgroup")
            left = min(left, int((folder / limit).read_text()) - int((folder / used).read_text()))
    return left


class Beacon:
    """Shows the other ranks of the host whether they can open this process's memory; lit during the start.

    Attributes
    ----------
    record : what the others need to know; all ranks exchange theirs
    """

    def __init__(self) -> None:
        self._descriptor = -1
        secret = secrets.token_bytes(16)
        if config.get("MPIRT_SHM"):
            with contextlib.suppress(OSError, AttributeError):  # not Linux
                self._descriptor = os.memfd_create("mpirt-beacon", os.MFD_CLOEXEC)
                os.write(self._descriptor, secret)
        self.record = np.array([(self._descriptor, secret.hex())], _RECORD)

    @staticmethod
    def empty_records(count: int) -> npt.NDArray[Any]:
        """Room for the records of ``count`` ranks."""
        return np.zeros(count, _RECORD)

    def domain(self, rank: int, neighbours: Sequence[int], pids: Sequence[int], records: npt.NDArray[Any]) -> int:
        """Number that this rank has in common with those whose memory it can open and that can open its own.

        Parameters
        ----------
        rank : this one
        neighbours : ranks of this host, this one among them
        pids, records : of all ranks

        Returns
        -------
        The lowest neighbour's rank if this rank sees all of them that are lit, else its own: so two ranks with the same
        number see each other.
        """
        lit = [other for other in neighbours if records[other]["descriptor"] >= 0]
        if rank in lit and all(_shines(pids[other], records[other]) for other in lit):
            return lit[0]
        return rank

    def put_out(self) -> None:
        """All have looked."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_RECORD = np.dtype([("descriptor", "<i8"), ("secret", "S32")])


def _shines(pid: int, record: Any) -> bool:
    try:
        opened = os.open(f"/proc/{pid}/fd/{record['descriptor']}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return bool(os.pread(opened, 16, 0).hex() == record["secret"].decode())
    except OSError:
        return False
    finally:
        os.close(opened)
