"""``tf.logging``: TensorFlow 1's spelling of the ``mpirt`` logger."""

from __future__ import annotations

import logging as _logging
from logging import DEBUG, ERROR, FATAL, INFO, WARN
from typing import Any

__all__ = [
    "DEBUG", "ERROR", "FATAL", "INFO", "WARN",
    "debug", "error", "fatal", "get_verbosity", "info", "log", "set_verbosity", "warn", "warning",
]  # fmt: skip

_logger = _logging.getLogger("mpirt")


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


def get_verbosity() -> int:
    """Lowest level that is logged."""
    return _logger.getEffectiveLevel()


def set_verbosity(v: int) -> None:
    """Log from level ``v`` on."""
    _logger.setLevel(v)
