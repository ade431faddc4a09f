"""``tf.logging``: TensorFlow 1's spelling of the ``mpirt`` logger, which writes to stderr unless the program set up logging.

The level is what the script chose last with ``set_verbosity``; otherwise that of ``MPIRT_LOG``, from the start of the cluster.
"""

from __future__ import annotations

import logging as _logging
from collections import Counter as _Counter
from logging import DEBUG, ERROR, FATAL, INFO, WARN
from typing import Any

__all__ = [
    "DEBUG", "ERROR", "FATAL", "INFO", "WARN",
    "debug", "error", "fatal", "flush", "get_verbosity", "info", "log", "log_every_n", "log_first_n", "log_if",
    "set_verbosity", "vlog", "warn", "warning",
]  # fmt: skip

_logger = _logging.getLogger("mpirt")
_calls: _Counter[tuple[str, int]] = _Counter()  # of each line that logs now and then


class _WhenAlone(_logging.StreamHandler[Any]):
    """Writes to stderr, only if the program has given the root logger no handler of its own."""

    def filter(self, record: _logging.LogRecord) -> bool:
        return not _logging.getLogger().handlers and bool(super().filter(record))


_handler = _WhenAlone()
_handler.setFormatter(_logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
_logger.addHandler(_handler)


def debug(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at level DEBUG."""
    _logger.debug(msg, *args, **kwargs)


def info(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at level INFO."""
    _logger.info(msg, *args, **kwargs)


def warning(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at level WARN."""
    _logger.warning(msg, *args, **kwargs)


def warn(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at level WARN."""
    _logger.warning(msg, *args, **kwargs)


def error(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at level ERROR."""
    _logger.error(msg, *args, **kwargs)


def fatal(msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at level FATAL; the program goes on."""
    _logger.fatal(msg, *args, **kwargs)


def log(level: int, msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at ``level``."""
    _logger.log(level, msg, *args, **kwargs)


def vlog(level: int, msg: str, *args: Any, **kwargs: Any) -> None:
    """Log at ``level``."""
    _logger.log(level, msg, *args, **kwargs)


def log_if(level: int, msg: str, condition: Any, *args: Any) -> None:
    """Log at ``level`` if ``condition`` holds."""
    if condition:
        _logger.log(level, msg, *args)


def log_first_n(level: int, msg: str, n: int, *args: Any) -> None:
    """Log at ``level`` the first ``n`` times that the calling line gets here."""
    log_if(level, msg, _count() < n, *args)


def log_every_n(level: int, msg: str, n: int, *args: Any) -> None:
    """Log at ``level`` the first of every ``n`` times that the calling line gets here."""
    log_if(level, msg, _count() % n == 0, *args)


def flush() -> None:
    """Write out what is buffered."""
    _handler.flush()


def get_verbosity() -> int:
    """Lowest level that is logged."""
    return _logger.getEffectiveLevel()


def set_verbosity(v: int) -> None:
    """Log from level ``v`` on."""
    _logger.setLevel(v)


def _count() -> int:
    """How often the line that called the caller has got here before."""
    file, line, _, _ = _logger.findCaller(stacklevel=3)
    _calls[file, line] += 1
    return _calls[file, line] - 1
