"""The field's error classes: TensorFlow's OpError family, with the place, the values and the mend.

Guarantee: ``str(error)`` is readable alone in a log of 512 ranks: what, where, the values, the mend.
The error codes are those of ``tensorflow.compat.v1.errors`` (google.rpc.Code).
"""

from __future__ import annotations

from typing import Any

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16


class OpError(Exception):
    """A failure of the runtime or of one operation.

    Both spellings are accepted: ours, ``InvalidArgumentError(message, op=op, hint="...")``, and TensorFlow's,
    ``InvalidArgumentError(node_def, op, message)``.

    Parameters
    ----------
    message : str
        What went wrong, where, and the values; one or more sentences.
    op : Operation, optional
        The operation that failed; its place in the user's script is added to the text.
    hint : str, optional
        The mend: what the user can do about it.

    Attributes
    ----------
    code : int
        Error code of the class (``errors.INVALID_ARGUMENT`` and so on).
    message : str
        The text without place and mend.
    op, node_def : the failing operation and its NodeDef, or None
    origin : str
        Where it first failed (``"rank 2, /job:worker/task:0/device:CPU:0"``), empty when that is here.
    """

    code = UNKNOWN

    def __init__(self, *args: Any, op: Any = None, hint: str = "", where: str = "", origin: str = "") -> None:
        if len(args) == 3:  # TensorFlow's order: node_def, op, message
            node_def, tf_op, message = args
            op = op if op is not None else tf_op
        elif len(args) == 1:
            node_def, message = None, args[0]
        else:
            raise TypeError(f"{type(self).__name__} takes (message) or (node_def, op, message), not {len(args)} values")
        super().__init__(message)
        self.message = str(message)
        self.op = op
        self._node_def = node_def
        self.hint = hint
        self.where = where or (op.location if op is not None and hasattr(op, "location") else "")
        self.origin = origin

    @property
    def error_code(self) -> int:
        """The same as ``code`` (TensorFlow's older name)."""
        return self.code

    @property
    def node_def(self) -> Any:
        """NodeDef of the failing operation, or None."""
        if self._node_def is None and self.op is not None and hasattr(self.op, "node_def"):
            return self.op.node_def
        return self._node_def

    def __str__(self) -> str:
        text = self.message
        if self.where:
            text += f"\n  defined at {self.where}."
        if self.origin:
            text += f"\n  failed on {self.origin}."
        if self.hint:
            text += f"\n  Mend: {self.hint}"
        return text


class CancelledError(OpError):
    """The step or operation was cancelled, for example because the session closed."""

    code = CANCELLED


class UnknownError(OpError):
    """A failure of unknown kind, for example an exception in the user's ``py_func``."""

    code = UNKNOWN


class InvalidArgumentError(OpError):
    """A value, shape, dtype, device or attribute is not acceptable."""

    code = INVALID_ARGUMENT


class DeadlineExceededError(OpError):
    """A wait passed its deadline."""

    code = DEADLINE_EXCEEDED


class NotFoundError(OpError):
    """Something that was named does not exist."""

    code = NOT_FOUND


class AlreadyExistsError(OpError):
    """Something that should be new exists."""

    code = ALREADY_EXISTS


class PermissionDeniedError(OpError):
    """The caller may not do this."""

    code = PERMISSION_DENIED


class ResourceExhaustedError(OpError):
    """Out of memory, tags or another bounded resource."""

    code = RESOURCE_EXHAUSTED


class FailedPreconditionError(OpError):
    """The state is not ready, for example a variable that is not initialised."""

    code = FAILED_PRECONDITION


class AbortedError(OpError):
    """The operation was given up by the runtime, for example when ranks disagree."""

    code = ABORTED


class OutOfRangeError(OpError):
    """Past the end, for example a dequeue from a closed and empty queue."""

    code = OUT_OF_RANGE


class UnimplementedError(OpError):
    """The operation exists but not for this device, dtype or shape."""

    code = UNIMPLEMENTED


class InternalError(OpError):
    """The runtime broke one of its own promises."""

    code = INTERNAL


class UnavailableError(OpError):
    """A rank or service can't be reached; a dead rank gives this."""

    code = UNAVAILABLE


class DataLossError(OpError):
    """Data was lost or is corrupt."""

    code = DATA_LOSS


class UnauthenticatedError(OpError):
    """The caller has no valid identity."""

    code = UNAUTHENTICATED


CLASS_OF_CODE: dict[int, type[OpError]] = {
    c.code: c
    for c in (
        CancelledError, UnknownError, InvalidArgumentError, DeadlineExceededError, NotFoundError, AlreadyExistsError,
        PermissionDeniedError, ResourceExhaustedError, FailedPreconditionError, AbortedError, OutOfRangeError,
        UnimplementedError, InternalError, UnavailableError, DataLossError, UnauthenticatedError,
    )
}  # fmt: skip


def error_code_from_exception_type(cls: type[OpError]) -> int:
    """Error code of a class; UNKNOWN for a class that has none of its own."""
    return cls.code


def exception_type_from_error_code(error_code: int) -> type[OpError]:
    """The class with this error code; KeyError if there is none."""
    return CLASS_OF_CODE[error_code]
