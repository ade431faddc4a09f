"""Hostlist expressions, ``rack[1-2]n[01-03,07]-ib,login``, and lists of numbers, ``0-3,7``.

Guarantees: the order of the expression is kept, and repeats too; zero padding is kept; nothing expands past ``MAX_HOSTS``.
Source: the syntax of Slurm's ``scontrol show hostnames``, which may be absent (containers) and knows nothing of job steps.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

MAX_HOSTS = 65536
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")
_ITEM = re.compile(r"(?:[^\[\],]|\[[^\[\]]*\])+")
_LIST = re.compile(rf"{_ITEM.pattern}(?:,{_ITEM.pattern})*")
_PART = re.compile(r"([^\[\]]+)|\[([^\[\]]*)\]")


def expand(expression: str) -> list[str]:
    """The hosts of a hostlist expression, in its order.

    Raises
    ------
    ValueError
        If it has unbalanced brackets, an empty host, a bad or backwards range, or more than ``MAX_HOSTS`` hosts.
    """
    text = expression.strip()
    if not _LIST.fullmatch(text):
        raise ValueError(f"hostlist {expression!r} has an empty host or unbalanced brackets")
    hosts: list[str] = []
    for item in _ITEM.findall(text):
        parts = [[literal.strip()] if literal else _padded(numbers) for literal, numbers in _PART.findall(item)]
        room = MAX_HOSTS - len(hosts)
        names = ["".join(name) for name in itertools.islice(itertools.product(*parts), room + 1)]
        if len(names) > room:
            raise ValueError(f"hostlist {expression!r} has more than {MAX_HOSTS} hosts")
        if not all(names):
            raise ValueError(f"hostlist {expression!r} has an empty host or unbalanced brackets")
        hosts += names
    return hosts


def numbers(text: str) -> list[int]:
    """``"0-2,7"`` -> ``[0, 1, 2, 7]``.

    Raises
    ------
    ValueError
        If a part is no number or range, runs backwards or is huge.
    """
    return [int(number) for number in _padded(text)]


def ranges(values: Iterable[int]) -> str:
    """The inverse of ``numbers`` for ascending values: ``[0, 1, 2, 7]`` -> ``"0-2,7"``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(f"{low}-{high}" if high > low else f"{low}" for low, high in runs)


def short_name(host: str) -> str:
    """Host name without its domain, in lower case; an IPv4 address stays whole."""
    return host if re.fullmatch(r"[0-9.]+", host) else host.split(".")[0].lower()


def _padded(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part!r} is not a number or a range like 0-3")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise ValueError(f"the range {part!r} runs backwards")
        if high - low >= MAX_HOSTS - len(found):
            raise ValueError(f"the range {part!r} is too large: at most {MAX_HOSTS} numbers")
        found += [str(value).zfill(len(match[1])) for value in range(low, high + 1)]
    return found
