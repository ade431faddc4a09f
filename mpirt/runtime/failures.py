"""What went wrong in a step, and errors of kernels as errors of the field."""

from __future__ import annotations

from dataclasses import dataclass

from mpirt import errors
from mpirt.compiler.placer import DeviceName
from mpirt.graph.graph import Operation


@dataclass(frozen=True, slots=True)
class Failure:
    """The first thing that went wrong on this rank in a step."""

    error: Exception
    op: Operation | None
    device: DeviceName | None
    traceback: str


class StepFailed(Exception):  # noqa: N818  (says that a step failed; ``failure`` is the error, None if it is another rank's)
    """A step ended dead."""

    def __init__(self, failure: Failure | None) -> None:
        super().__init__("the step failed")
        self.failure = failure


def op_error(error: Exception, op: Operation | None) -> errors.OpError:
    """``error`` of a kernel as the field's error class, with the operation it came from."""
    if isinstance(error, errors.OpError):
        if error.op is None and op is not None:
            return type(error)(error.message, op=op, hint=error.hint, origin=error.origin)
        return error
    known: tuple[tuple[type[Exception], type[errors.OpError]], ...] = (
        (NotImplementedError, errors.UnimplementedError),
        (MemoryError, errors.ResourceExhaustedError),
        (ArithmeticError, errors.InvalidArgumentError),
        (ValueError, errors.InvalidArgumentError),
        (TypeError, errors.InvalidArgumentError),
        (LookupError, errors.InvalidArgumentError),
    )
    kind = next((ours for theirs, ours in known if isinstance(error, theirs)), errors.UnknownError)
    name = f"{op.name!r} ({op.type})" if op is not None else "a step"
    return kind(f"{name} failed: {type(error).__name__}: {error}", op=op)
