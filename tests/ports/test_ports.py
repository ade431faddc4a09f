"""TensorFlow-1 scripts whose import line alone was changed: TensorFlow's own results, on any number of ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ports.tools import TENSORFLOW, assert_agree, results

HERE = Path(__file__).parent


@pytest.mark.parametrize("command", TENSORFLOW)
@pytest.mark.one_mpi
def test_a_script_gives_tensorflows_numbers_in_one_process(mpirun: Any, command: str) -> None:
    (mine,) = results(mpirun, None, command)
    assert_agree(json.loads(mine), TENSORFLOW[command])


@pytest.mark.parametrize(
    "command", ["logistic_regression", "mlp", "embedding --optimizer=adagrad", "embedding --optimizer=adam --task_index=1"]
)
def test_a_script_gives_the_same_numbers_on_four_ranks_and_on_each_of_them(mpirun: Any, command: str) -> None:
    (alone,) = results(mpirun, None, command)
    assert results(mpirun, 4, command) == [alone] * 4


@pytest.mark.one_mpi
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_random_weights_and_dropout_are_the_same_on_any_number_of_ranks(mpirun: Any, ranks: int) -> None:
    command = "mlp --initializer=random --keep_prob=0.8 --steps=20"
    (alone,) = results(mpirun, None, command)
    assert results(mpirun, ranks, command) == [alone] * ranks
    kept_all = json.loads(results(mpirun, None, "mlp --initializer=random --keep_prob=1 --steps=20")[0])
    assert json.loads(alone)["history"] != kept_all["history"]


def test_only_the_import_line_is_not_tensorflows() -> None:
    for path in sorted(HERE.glob("[!t]*.py")):
        text = path.read_text().replace("mpirt's", "")
        assert text.count("mpirt") == 1 and "\nimport mpirt as tf\n" in text, path.name
