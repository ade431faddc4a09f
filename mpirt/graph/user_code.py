"""Where in the user's script something was asked for: the nearest frames outside this package."""

from __future__ import annotations

import os
import sys
from types import CodeType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MAX_FRAMES = 8


Caller = tuple[CodeType, int]
"""A place in a script: code, and the offset of an instruction in it. `line_of` spells it."""


def caller(ours: int = 1) -> Caller:
    """The nearest caller outside this package; costs a fifth of its line.

    Parameters
    ----------
    ours : so many of the innermost callers are known to be of this package
    """
    frame = sys._getframe(ours + 1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def line_of(place: Caller) -> str:
    """``file:line``."""
    code, offset = place
    line = next((line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno)
    return f"{code.co_filename}:{line}"


def caller_line() -> str:
    """``file:line`` of the nearest caller outside this package."""
    return line_of(caller())


def user_frames() -> tuple[tuple[str, int], ...]:
    """(file, line) of the callers outside this package, innermost first."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    found: list[tuple[str, int]] = []
    while frame is not None and len(found) < _MAX_FRAMES:
        found.append((frame.f_code.co_filename, frame.f_lineno))
        if frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)
