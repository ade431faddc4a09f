"""``import mpirt as tf``: which names it promises, that all of them are there, and that no list promises what isn't."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import mpirt as tf

PINNED = (Path(__file__).parents[1] / "golden" / "front_door.txt").read_text().split()
NAMESPACES = [name for name in tf.__all__ if isinstance(getattr(tf, name), ModuleType)]


def test_the_front_door_is_the_pinned_one() -> None:
    """A name that is missing breaks scripts; a new one is a promise. Either way: say so in CHANGES and edit front_door.txt."""
    missing, new = sorted(set(PINNED) - set(promised())), sorted(set(promised()) - set(PINNED))
    assert (missing, new) == ([], []), "rewrite tests/golden/front_door.txt: python -m tests.unit.test_front_door"


def test_every_promised_name_is_there_and_listed_once() -> None:
    for module in (tf, *(getattr(tf, name) for name in NAMESPACES)):
        names = names_of(module)
        assert len(set(names)) == len(names), module
        assert [name for name in names if not hasattr(module, name)] == [], module


def test_namespaces_are_public_modules_with_a_list_of_names() -> None:
    for name in NAMESPACES:
        module = getattr(tf, name)
        assert module.__name__ == f"mpirt.{name}", f"tf.{name} is {module.__name__}"
        assert importlib.import_module(f"mpirt.{name}") is module
        assert names_of(module)


def test_a_star_import_gives_no_private_name() -> None:
    assert [name for name in tf.__all__ if name.startswith("_") and name != "__version__"] == []


@pytest.mark.parametrize("name", PINNED)
def test_public_functions_and_classes_have_a_docstring(name: str) -> None:
    value: object = tf
    for part in name.split("."):
        value = getattr(value, part)
    if inspect.isfunction(value) or (inspect.isclass(value) and value.__module__.startswith("mpirt.")):
        assert inspect.getdoc(value), f"tf.{name} has none"


def promised() -> list[str]:
    """Every public name, ``Session`` and ``train.AdamOptimizer`` alike."""
    return sorted([*tf.__all__, *(f"{space}.{name}" for space in NAMESPACES for name in names_of(getattr(tf, space)))])


def names_of(module: ModuleType) -> list[str]:
    """The public names of a module; of one without a list, its own classes and its constants."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return [name for name, value in own.items() if isinstance(value, int) or getattr(value, "__module__", "") == module.__name__]


if __name__ == "__main__":
    (Path(__file__).parents[1] / "golden" / "front_door.txt").write_text("\n".join(promised()) + "\n")
