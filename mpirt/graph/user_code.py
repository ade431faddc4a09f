"""Where in the user's script something was asked for: the nearest frames outside this package."""

from __future__ import annotations

import os
import sys

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MAX_FRAMES = 8


def caller_line() -> str:
    """``file:line`` of the nearest caller outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


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
