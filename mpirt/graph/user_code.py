"""Where in the user's script something was asked for: the nearest frames outside this package."""

from __future__ import annotations

import os
import sys
from types import CodeType

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MAX_FRAMES = 8


def caller_line() -> str:
    """``file:line`` of the nearest caller outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


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
