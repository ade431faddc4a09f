"""Every ``MPIRT_*`` environment setting, in one table.

Guarantee: a setting is read here and nowhere else; a value that doesn't parse is refused with its name,
the value and what is expected. Settings are read when asked for, so that tests and launchers may set them late.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpirt.errors import InvalidArgumentError


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise ValueError(text)
    return value


@dataclass(frozen=True, slots=True)
class Setting:
    """One environment variable: name, parser, default, what it means, what is expected."""

    name: str
    parse: Callable[[str], Any]
    default: Any
    meaning: str
    expects: str


SETTINGS: dict[str, Setting] = {
    s.name: s
    for s in (
        Setting("MPIRT_RANK_TABLE", str, "", "rank table file (TOML or flat text) that maps ranks to tasks", "a path"),
        Setting("MPIRT_EMULATED_GPUS", _count, 0, "emulated GPUs of every task, for development without GPUs", "0, 1, 2, ..."),
        Setting("MPIRT_STALL_S", _seconds, 30.0, "a wait longer than this is reported, and again each time it doubles", "seconds"),
        Setting("MPIRT_TIMEOUT_S", _seconds, 3600.0, "deadline of a wait inside a step; 0 = none", "seconds"),
        Setting("MPIRT_START_TIMEOUT_S", _seconds, 120.0, "deadline of the start-up exchange between ranks; 0 = none", "seconds"),
        Setting("MPIRT_EXIT_TIMEOUT_S", _seconds, 30.0, "how long a finished rank waits for the others at exit", "seconds"),
        Setting("MPIRT_SHM", _flag, True, "large tensors between ranks of one host go through shared memory", "0 or 1"),
        Setting("MPIRT_DUMP_PROGRAM", str, "", "write each rank's compiled programs to this folder", "a folder"),
        Setting("MPIRT_LOG", str, "WARNING", "log level of the 'mpirt' logger", "DEBUG, INFO, WARNING, ERROR"),
        Setting("MPIRT_THREADS", _count, 0, "BLAS threads of this rank; 0 = its cores / ranks on them / its servers", "0, 1, 2, ..."),
    )
}  # fmt: skip


def get(name: str) -> Any:
    """Value of the setting ``name``, parsed; its default when unset or empty.

    Raises
    ------
    InvalidArgumentError
        If the value in the environment doesn't parse.
    """
    setting = SETTINGS[name]
    text = os.environ.get(name, "")
    if text == "":
        return setting.default
    try:
        return setting.parse(text)
    except ValueError:
        raise InvalidArgumentError(
            f"environment variable {name}={text!r} can't be read: expected {setting.expects}.",
            hint=f"set {name} to {setting.expects}, or unset it ({setting.meaning}; default {setting.default!r}).",
        ) from None
