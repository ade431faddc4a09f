"""State of the tasks of this process: variables, queues and the like, by (task, container, name).

Owns: finding and making; what a resource can do belongs to the family that makes it (``ops.state_ops.VariableCell``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from mpirt.cluster.task import Task


class ResourceManager:
    """The resources of some tasks; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resources: dict[tuple[Task, str, str], Any] = {}
        self.generation = 0  # changes when resources are dropped: who remembers one asks again

    def lookup_or_create(self, task: Task, container: str, name: str, factory: Callable[[str], Any]) -> Any:
        """The resource ``name``; made by ``factory(name)`` the first time."""
        key = (task, container, name)
        with self._lock:
            if key not in self._resources:
                self._resources[key] = factory(name)
            return self._resources[key]

    def clear(self, containers: Iterable[str] | None = None) -> None:
        """Drop all resources, or those of some containers ("" is the default one).

        One that others may be waiting for has a method ``discard``, which tells them; it is called then.
        """
        chosen = None if containers is None else set(containers)
        with self._lock:
            self.generation += 1
            dropped = [self._resources.pop(k) for k in list(self._resources) if chosen is None or k[1] in chosen]
        for resource in dropped:
            if hasattr(resource, "discard"):
                resource.discard()

    def names(self) -> list[tuple[Task, str, str]]:
        """(task, container, name) of every resource, sorted."""
        with self._lock:
            return sorted(self._resources)
