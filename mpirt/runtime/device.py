"""Devices of a task: an array namespace, a memory space, and copies between it and host memory.

Owns: the only import of cupy. An emulated GPU is a separate memory space on the CPU: values move to it and from it by the
same copies as on a real GPU and never alias the CPU's arrays, though a kernel could still read an array of the wrong space.
It is used only when ``MPIRT_EMULATED_GPUS`` asks for it, and named as emulated in every report.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from mpirt import config, errors

Array = Any  # numpy.ndarray on a CPU, cupy.ndarray on a GPU


class Device(Protocol):
    """One device of this process."""

    name: str
    """Name within the task: ``CPU:0``."""
    description: str
    """What it is, for reports."""

    @property
    def xp(self) -> ModuleType:
        """Array namespace that kernels use."""

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """A copy of a host array in this device's memory; the same array on a CPU."""

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """A copy of one of this device's arrays in host memory; the same array on a CPU."""

    def active(self) -> AbstractContextManager[Any]:
        """Make the device and its stream current inside the block."""

    def bound(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with the device and its stream current; the same function on a CPU."""

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""


class CpuDevice:
    """The cores of this process."""

    xp: ModuleType = np

    def __init__(self, index: int = 0) -> None:
        self.name = f"CPU:{index}"
        self.description = "CPU"

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """The same array."""
        return array

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """The same array."""
        return array  # type: ignore[no-any-return]

    def active(self) -> AbstractContextManager[Any]:
        """Nothing to do."""
        return nullcontext()

    def bound(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function."""
        return call

    def synchronize(self) -> None:
        """Nothing to do: kernels of a CPU have run when they return."""


class EmulatedGpu(CpuDevice):
    """A memory space of its own on the CPU, for development without GPUs."""

    def __init__(self, index: int) -> None:
        self.name = f"GPU:{index}"
        self.description = "GPU emulated on the CPU"

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """A copy that shares no memory with ``array``."""
        return np.array(array)

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """A copy that shares no memory with ``array``."""
        return np.array(array)


# From here on page-locked memory is worth it: copies to the host are 1.3 x as fast at 64 KiB, 15 x at 64 MiB (H100).
_PINNED_NBYTES = 1 << 14


class CudaGpu:
    """A GPU through cupy. All work of a rank goes to one stream of the device, so kernels and copies keep their order.

    Large arrays come to page-locked host memory, which cupy keeps for the next ones when they are dropped.
    """

    def __init__(self, index: int, ordinal: int) -> None:
        self._cupy = importlib.import_module("cupy")
        self.name = f"GPU:{index}"
        self.xp: ModuleType = self._cupy
        self._device = self._cupy.cuda.Device(ordinal)
        with self._device:
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
            properties = self._cupy.cuda.runtime.getDeviceProperties(ordinal)
        self.description = f"{properties['name'].decode()} (CUDA ordinal {ordinal})"

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """A copy in the GPU's memory, in the order of its stream."""
        with self._device, self._stream:
            return self._cupy.asarray(array)

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """A copy in host memory, complete when this returns."""
        with self._device, self._stream:
            host = self._pinned(array) if array.nbytes >= _PINNED_NBYTES else None
            return self._cupy.asnumpy(array, stream=self._stream, out=host, blocking=True)  # type: ignore[no-any-return]

    def _pinned(self, array: Array) -> np.ndarray[Any, Any] | None:
        """Page-locked memory for ``array``; None if there is none left."""
        try:
            memory = self._cupy.cuda.alloc_pinned_memory(array.nbytes)
        except self._cupy.cuda.runtime.CUDARuntimeError:
            return None
        return np.ndarray(array.shape, array.dtype, memory)

    def active(self) -> AbstractContextManager[Any]:
        """Make device and stream current."""
        return _Both(self._device, self._stream)

    def bound(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, with device and stream current."""
        device, stream = self._device, self._stream

        def run(*inputs: Any) -> Any:
            with device, stream:
                return call(*inputs)

        return run

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()


class _Both:
    """Device and stream entered together."""

    def __init__(self, device: Any, stream: Any) -> None:
        self._device, self._stream = device, stream

    def __enter__(self) -> None:
        self._device.__enter__()
        self._stream.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._stream.__exit__(*exc)
        self._device.__exit__(*exc)


def visible_gpus() -> int:
    """Number of GPUs that cupy can use in this process; 0 without cupy or without a GPU. Starts no GPU context."""
    if importlib.util.find_spec("cupy") is None:
        return 0
    cupy = importlib.import_module("cupy")
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


def default_devices() -> tuple[str, ...]:
    """Devices of a task whose rank table names none: a CPU, and emulated GPUs if asked for, else the visible ones."""
    gpus = config.get("MPIRT_EMULATED_GPUS") or visible_gpus()
    return ("CPU:0", *(f"GPU:{i}" for i in range(gpus)))


def open_device(name: str) -> Device:
    """The device ``name`` ("CPU:0", "GPU:1") of this process.

    Raises
    ------
    InvalidArgumentError
        If there is no such device here.
    """
    kind, _, number = name.partition(":")
    index = int(number)
    if kind == "CPU":
        return CpuDevice(index)
    if kind == "GPU":
        emulated, real = config.get("MPIRT_EMULATED_GPUS"), 0
        if index < emulated:
            return EmulatedGpu(index)
        if not emulated:
            real = visible_gpus()
            if index < real:
                return CudaGpu(index, index)
        raise errors.InvalidArgumentError(
            f"this rank has no device {name}: {emulated} emulated and {real} real GPU(s) can be used here.",
            hint="install the extra cuda12x or cuda13x on a machine with GPUs, set MPIRT_EMULATED_GPUS, or change the rank table.",
        )
    raise errors.InvalidArgumentError(f"device type {kind!r} is not supported; mpirt has CPU and GPU.")


def is_emulated(name: str) -> bool:
    """Whether the device ``name`` of a task is an emulated one in this job."""
    return name.startswith("GPU:") and config.get("MPIRT_EMULATED_GPUS") > 0
