"""Variable scopes, sharing, slices and containers: the questions of tests/golden/tf_scopes.py have TensorFlow's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mpirt as tf
from tests.golden.tf_scopes import QUESTIONS, answer

ANSWERS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "tf" / "scopes.json").read_text())


def test_every_question_was_asked() -> None:
    assert sorted(QUESTIONS) == sorted(ANSWERS.keys() - {"tensorflow_version"}), "run tests/golden/make_tf_golden.py --only scopes"


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_answer_is_tensorflows(name: str) -> None:
    assert json.loads(json.dumps(answer(tf, name))) == ANSWERS[name]
