"""The Task-Bench-style line of the suite: its patterns, its checksums and its METG against answers found another way."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
STEPS = 12


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of the suite, which runs as scripts from its own folder."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module


Reads = Callable[[int, int, int, int], bool]  # width, step, point, point of the row before

DEFINITIONS: dict[str, Reads] = {
    "trivial": lambda width, step, p, q: False,
    "no_comm": lambda width, step, p, q: p == q,
    "stencil_1d": lambda width, step, p, q: abs(p - q) <= 1,
    "stencil_1d_periodic": lambda width, step, p, q: min((p - q) % width, (q - p) % width) <= 1,
    "dom": lambda width, step, p, q: p - q in (0, 1),
    "tree": lambda width, step, p, q: p in (2 * q, 2 * q + 1),
    "fft": lambda width, step, p, q: abs(p - q) in (0, 2 ** ((step - 1) % max(1, int(np.ceil(np.log2(width)))))),
    "nearest": lambda width, step, p, q: abs(p - q) <= 2,
    "all_to_all": lambda width, step, p, q: True,
}


@pytest.mark.parametrize("pattern", DEFINITIONS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 11])
def test_a_task_reads_exactly_the_outputs_that_its_patterns_definition_names(bench: Any, pattern: str, width: int) -> None:
    graph = bench("task_patterns").TaskGraph(pattern, width, STEPS)
    reads = DEFINITIONS[pattern]
    for step in range(1, STEPS):
        before = list(graph.points(step - 1))
        for p in graph.points(step):
            assert graph.inputs(step, p) == tuple(q for q in before if reads(width, step, p, q)), (step, p)


@pytest.mark.parametrize("pattern", [*DEFINITIONS, "spread", "random_nearest"])
def test_the_first_row_reads_nothing(bench: Any, pattern: str) -> None:
    graph = bench("task_patterns").TaskGraph(pattern, 8, STEPS)
    assert [graph.inputs(0, p) for p in graph.points(0)] == [()] * len(graph.points(0))


def test_spread_reads_five_outputs_a_fifth_of_the_width_apart_and_all_but_the_own_one_turn_with_the_row(bench: Any) -> None:
    graph = bench("task_patterns").TaskGraph("spread", 20, STEPS)
    for step, p in itertools.product(range(1, STEPS), range(20)):
        others = {(p + distance + step % 3) % 20 for distance in (4, 8, 12, 16)}
        assert set(graph.inputs(step, p)) == {p} | others


def test_random_nearest_reads_itself_and_about_a_quarter_of_its_neighbours_anew_in_each_of_three_rows(bench: Any) -> None:
    graph = bench("task_patterns").TaskGraph("random_nearest", 2000, STEPS)
    rows = [[graph.inputs(step, p) for p in range(2000)] for step in range(1, 7)]
    for row in rows:
        assert all(p in inputs and all(abs(p - q) <= 2 for q in inputs) for p, inputs in enumerate(row))
        assert sum(map(len, row)) - 2000 == pytest.approx(0.25 * (4 * 2000 - 6), rel=0.06)  # 3.5 deviations of 40
    assert rows[0] == rows[3] and rows[1] == rows[4] and rows[2] == rows[5]
    assert rows[0] != rows[1] != rows[2] != rows[0]


def test_random_nearest_is_the_same_in_every_process(bench: Any) -> None:
    code = (
        "from task_patterns import TaskGraph; g = TaskGraph('random_nearest', 9, 4); print([g.inputs(2, p) for p in range(9)])"
    )
    graph = bench("task_patterns").TaskGraph("random_nearest", 9, 4)
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCH, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == str([graph.inputs(2, p) for p in range(9)])


def test_dom_is_a_wave_and_a_tree_doubles_its_width(bench: Any) -> None:
    TaskGraph = bench("task_patterns").TaskGraph  # noqa: N806
    wave = [list(TaskGraph("dom", 3, 6).points(step)) for step in range(6)]
    assert wave == [[0], [0, 1], [0, 1, 2], [0, 1, 2], [1, 2], [2]]
    assert [len(TaskGraph("tree", 6, 5).points(step)) for step in range(5)] == [1, 2, 4, 6, 6]
    assert TaskGraph("dom", 3, 6).num_tasks == 12


@pytest.mark.parametrize("pattern", [*DEFINITIONS, "spread", "random_nearest"])
def test_the_serial_run_gives_the_reference_s_checksum(bench: Any, pattern: str) -> None:
    patterns = bench("task_patterns")
    graph = patterns.TaskGraph(pattern, 5, STEPS)
    patterns.ledger.checksum = patterns.ledger.iterations = 0
    patterns.Serial(graph).run()
    checks = patterns.reference(graph)
    assert len(set(checks.values())) == graph.num_tasks, "two tasks have the same checksum"
    assert patterns.ledger.checksum == patterns.checksum(checks, range(5)) != 0


@pytest.mark.parametrize("mistake", ["lost", "swapped", "stale", "another point's"])
def test_one_wrong_input_of_one_task_changes_the_checksum(bench: Any, mistake: str) -> None:
    patterns = bench("task_patterns")
    graph = patterns.TaskGraph("stencil_1d", 5, STEPS)
    expected = patterns.checksum(patterns.reference(graph), range(5))
    serial = patterns.Serial(graph)
    ledger = patterns.ledger
    for at, (key, inputs, out) in enumerate(serial._tasks):
        if len(inputs) < 2:
            continue
        wrong = {
            "lost": inputs[1:],
            "swapped": inputs[::-1],
            "stale": [np.full_like(inputs[0], 7), *inputs[1:]],
            "another point's": [inputs[1], *inputs[1:]],
        }[mistake]
        serial._tasks[at] = key, wrong, out
        ledger.checksum = ledger.iterations = 0
        serial.run()
        assert ledger.checksum != expected, f"{mistake} input of task {at} went unseen"
        serial._tasks[at] = key, inputs, out


def sweep(bench: Any, task_s: Callable[[float], float], kernels_s: Any) -> list[Any]:
    return [bench("metg").Point(k, task_s(k)) for k in kernels_s]


GRAINS = [0.0, *(0.7e-6 * 2.0**i for i in range(10))]


@pytest.mark.parametrize("cost_s", [1e-6, 3.3e-6, 25e-6, 200e-6])
def test_metg_of_a_fixed_cost_per_task_is_twice_that_cost(bench: Any, cost_s: float) -> None:
    found = bench("metg").metg(sweep(bench, lambda k: k + cost_s, reversed(GRAINS)))
    assert found == pytest.approx(2 * cost_s, rel=1e-9)


def test_metg_where_the_kernel_hides_the_cost_wholly_is_that_cost(bench: Any) -> None:
    assert bench("metg").metg(sweep(bench, lambda k: max(k, 10e-6), np.linspace(0, 30e-6, 7))) == pytest.approx(10e-6)


def test_metg_asks_for_the_efficiency_given(bench: Any) -> None:
    points = sweep(bench, lambda k: k + 9e-6, GRAINS)
    assert bench("metg").metg(points, 0.9) == pytest.approx(90e-6)  # k / (k + 9) = 0.9 at k = 81


def test_metg_is_the_first_grain_where_that_is_efficient_and_none_where_none_is(bench: Any) -> None:
    assert bench("metg").metg(sweep(bench, lambda k: 1.5 * k, GRAINS[3:])) == pytest.approx(1.5 * GRAINS[3])
    assert np.isnan(bench("metg").metg(sweep(bench, lambda k: k + 1.0, GRAINS)))
