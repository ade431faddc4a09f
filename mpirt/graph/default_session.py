"""The default session of each thread: what ``tensor.eval()`` and ``op.run()`` use."""

from __future__ import annotations

import threading
from typing import Any


class _DefaultSession(threading.local):
    def __init__(self) -> None:
        self.stack: list[Any] = []


_default_session = _DefaultSession()


def default_session_stack() -> list[Any]:
    """This thread's stack of default sessions (pushed by ``Session.as_default``)."""
    return _default_session.stack


def session_or_default(session: Any, what: str) -> Any:
    """``session``, else the default one; ValueError if there is none."""
    if session is not None:
        return session
    if not _default_session.stack:
        raise ValueError(f"Cannot use {what}: no default session is open. Use `with sess.as_default():` or pass session=sess.")
    return _default_session.stack[-1]
