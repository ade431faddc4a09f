"""Device strings: what ``/job:ps/task:1/device:GPU:0`` names, and how two of them combine.

Owns: the one parser, the one printer and the merge rule of device strings, for graph building and for placement alike.
Guarantees: merge is associative and idempotent with the empty spec as identity; ``str(parse(s))`` is a fixed point.
Does not own: the stack of device scopes (graph) or which devices exist (compiler.placer).
Source: the behaviour of TensorFlow 1's device.py, minus its traps; tests/unit/test_device_spec.py lists every difference.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import SupportsIndex

from mpirt.cluster.task import JOB_NAME

_TYPE_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PIECE = re.compile(
    rf"""job:(?P<job>\*|{JOB_NAME})
       | replica:(?P<replica>\*|[0-9]+)
       | task:(?P<task>\*|[0-9]+)
       | (?:device:(?P<type>\*|{_TYPE_NAME}) | (?P<legacy>(?i:cpu|gpu|tpu|epu|custom))) (?: :(?P<index>\*|[0-9]+) )?""",
    re.VERBOSE,
)
_ACCEPTED = (
    "Accepted pieces, each at most once, in any order: /job:NAME (a letter, then letters, digits, '_', '.', '-'), /replica:N, "
    "/task:N, /device:TYPE:N, and for known types /cpu:N, /gpu:N, /tpu:N, /epu:N, /custom:N; '*' or no number means any; "
    "for example '/job:ps/task:0/device:CPU:0'."
)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device by name, whole or in part; None is "not said" and matches any.

    Parameters
    ----------
    job : str, optional
        Job name: a letter, then letters, digits, ``_``, ``.``, ``-``.
    replica, task : int, optional
        Not negative.
    device_type : str, optional
        Any identifier, stored in upper case: ``"CPU"``, ``"GPU"``.
    device_index : int, optional
        Not negative. Kept, but not printed, when ``device_type`` is not set (as TensorFlow does).

    Raises
    ------
    ValueError
        If a name or number is not acceptable.
    TypeError
        If a name is no string or a number no integer.
    """

    job: str | None = None
    replica: int | None = None
    task: int | None = None
    device_type: str | None = None
    device_index: int | None = None

    def __post_init__(self) -> None:
        _check_name("job", self.job, JOB_NAME)
        _check_name("device_type", self.device_type, _TYPE_NAME)
        if self.device_type is not None:
            object.__setattr__(self, "device_type", self.device_type.upper())
        for field in ("replica", "task", "device_index"):
            object.__setattr__(self, field, _checked_number(field, getattr(self, field)))

    @staticmethod
    def from_string(spec: str | None) -> DeviceSpec:
        """The spec that the string names; None and ``""`` name nothing.

        Raises
        ------
        ValueError
            If a piece is unknown, malformed or repeated.
        """
        return parse(spec or "")

    def parse_from_string(self, spec: str | None) -> DeviceSpec:
        """The same as ``from_string``: a new spec (TensorFlow 1 changed the object; a spec here never changes)."""
        return DeviceSpec.from_string(spec)

    def to_string(self) -> str:
        """Canonical form, ``/job:J/replica:R/task:T/device:TYPE:INDEX``, without what is not set; index ``*`` = any."""
        text = ""
        if self.job is not None:
            text += f"/job:{self.job}"
        if self.replica is not None:
            text += f"/replica:{self.replica}"
        if self.task is not None:
            text += f"/task:{self.task}"
        if self.device_type is not None:
            text += f"/device:{self.device_type}:{'*' if self.device_index is None else self.device_index}"
        return text

    def make_merged_spec(self, dev: DeviceSpec) -> DeviceSpec:
        """Field by field: what ``dev`` says, else what this spec says.

        Notes
        -----
        The fields are not coupled, as in TensorFlow: ``/job:ps/task:1`` with dev ``/job:worker`` gives
        ``/job:worker/task:1`` (see ``leaks_task``), and ``/gpu:1`` with dev ``/cpu`` gives ``/device:CPU:1``.
        """
        return DeviceSpec(
            self.job if dev.job is None else dev.job,
            self.replica if dev.replica is None else dev.replica,
            self.task if dev.task is None else dev.task,
            self.device_type if dev.device_type is None else dev.device_type,
            self.device_index if dev.device_index is None else dev.device_index,
        )

    def replace(self, **fields: str | int | None) -> DeviceSpec:
        """A new spec with the given fields changed; None unsets a field."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]  # __post_init__ checks each value

    def __str__(self) -> str:
        return self.to_string()


@lru_cache(maxsize=8192)
def parse(text: str) -> DeviceSpec:
    """The spec that ``text`` names, cached: the graph asks for every operation.

    Raises
    ------
    ValueError
        If a piece is unknown, malformed or repeated.
    """
    if not isinstance(text, str):
        raise TypeError(f"a device must be a string, not {text!r}.")
    found: dict[str, str] = {}
    for piece in filter(None, text.split("/")):
        match = _PIECE.fullmatch(piece)
        if match is None:
            raise ValueError(f"device {text!r}: can't read the piece {'/' + piece!r}. {_ACCEPTED}")
        values = {field: value for field, value in match.groupdict().items() if value is not None}
        if "legacy" in values:
            values["type"] = values.pop("legacy")
        if found.keys() & values.keys():
            what = "device" if "type" in values else next(iter(values))
            raise ValueError(f"device {text!r}: the piece {'/' + piece!r} says the {what} a second time. {_ACCEPTED}")
        if values.get("type") == "*" and values.get("index", "*") != "*":
            raise ValueError(f"device {text!r}: the piece {'/' + piece!r} gives an index without a device type. {_ACCEPTED}")
        found.update(values)
    job, replica, task, device_type, index = (
        None if found.get(key, "*") == "*" else found[key] for key in ("job", "replica", "task", "type", "index")
    )
    return DeviceSpec(job, _number(replica), _number(task), device_type, _number(index))


@lru_cache(maxsize=8192)
def merge(outer: str, inner: str) -> str:
    """Canonical string of ``outer`` with what ``inner`` says put over it (see ``make_merged_spec``), cached."""
    return parse(outer).make_merged_spec(parse(inner)).to_string()


def leaks_task(outer: str, inner: str) -> bool:
    """Whether merging gives ``inner``'s job the task of ``outer``'s job: ``/job:ps/task:1`` with ``/job:worker``.

    TensorFlow does so silently, and users' code depends on it; it is the most frequent misplacement, so the graph warns.
    """
    out, inn = parse(outer), parse(inner)
    return out.task is not None and inn.task is None and None not in (out.job, inn.job) and out.job != inn.job


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _check_name(field: str, value: str | None, pattern: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"DeviceSpec: {field} must be a string, not {value!r}.")
    if not re.fullmatch(pattern, value):
        raise ValueError(f"DeviceSpec: {field}={value!r} is not a name that matches {pattern}.")


def _checked_number(field: str, value: SupportsIndex | None) -> int | None:
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"DeviceSpec: {field} must be an integer, not {value!r}.") from None
    if number < 0:
        raise ValueError(f"DeviceSpec: {field}={number} is negative.")
    return number
