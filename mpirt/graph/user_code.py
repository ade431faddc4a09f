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


Frames = tuple[tuple[str, int], ...]


class UserFrames:
    """Finds the callers outside this package, for many calls from the same few lines: each place is looked up once and kept once."""

    def __init__(self) -> None:
        self._ours: dict[str, bool] = {}  # whether a file belongs to this package
        # By the instructions that the frames are at; their code is kept, so that nothing else gets its id.
        self._known: dict[tuple[int, ...], tuple[Frames, list[CodeType]]] = {}

    def find(self) -> Frames:
        """(file, line) of the callers outside this package, innermost first. To be called from inside it."""
        frame = sys._getframe(2)
        ours = self._ours
        while frame is not None:
            file = frame.f_code.co_filename
            if file not in ours:
                ours[file] = file.startswith(_PACKAGE)
            if not ours[file]:
                break
            frame = frame.f_back  # type: ignore[assignment]
        places: list[int] = []
        innermost = frame
        while frame is not None:
            code = frame.f_code
            places.append(id(code))
            places.append(frame.f_lasti)
            if len(places) == 2 * _MAX_FRAMES or code.co_name == "<module>":
                break
            frame = frame.f_back  # type: ignore[assignment]
        key = tuple(places)
        found = self._known.get(key)
        if found is None:
            codes, lines = [], []
            frame = innermost
            for _ in range(0, len(places), 2):
                codes.append(frame.f_code)
                lines.append((frame.f_code.co_filename, frame.f_lineno))
                frame = frame.f_back  # type: ignore[assignment]
            found = self._known[key] = tuple(lines), codes
        return found[0]
