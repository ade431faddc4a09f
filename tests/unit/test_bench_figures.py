"""What the benchmark suite says of known samples: medians, ratios round by round, targets, verdicts, growth, and its exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import figures

    yield figures
    sys.modules.pop("figures")


def test_a_ratio_divides_within_each_round_so_that_a_round_ten_times_as_slow_for_both_does_not_move_it(figures: Any) -> None:
    report = figures.Report("edge")
    mpirt = figures.Measured([[2e-6, 4e-6, 3e-6], [30e-6, 30e-6, 30e-6], [3e-6, 3e-6, 9e-6]])
    mpi4py = figures.Measured([[2e-6, 2e-6, 2e-6], [20e-6, 20e-6, 20e-6], [2e-6, 2e-6, 2e-6]])
    report.row("8 B", "round trip", "us", {"mpirt": mpirt, "mpi4py": mpi4py, "tensorflow": figures.Measured()})
    (row,) = report.rows
    assert row["values"]["mpirt"] == pytest.approx({"median": 4.0, "p10": 2.8, "p90": 30.0, "n": 9})
    assert set(row["values"]) == {"mpirt", "mpi4py"}  # who wasn't measured isn't named
    assert row["ratios"] == {"mpirt / mpi4py": pytest.approx({"median": 1.5, "p10": 1.5, "p90": 1.5, "n": 3})}


def test_every_contestant_of_ours_is_compared_with_every_other_one(figures: Any) -> None:
    report = figures.Report("edge")
    one = {name: figures.Measured([[seconds]]) for name, seconds in {"mpirt": 1.0, "mpirt run": 2.0, "mpi4py": 4.0, "limit": 0.5}.items()}
    report.row("8 B", "round trip", "s", one)
    medians = {name: ratio["median"] for name, ratio in report.rows[0]["ratios"].items()}
    assert medians == {"mpirt / mpi4py": 0.25, "mpirt / limit": 2.0, "mpirt run / mpi4py": 0.5, "mpirt run / limit": 4.0}


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        ({"ratio": "mpirt / mpi4py", "at_most": 2.0}, "reached"),
        ({"ratio": "mpirt / mpi4py", "at_most": 1.0}, "MISSED"),
        ({"ratio": "mpirt / mpi4py", "at_most": 1.55}, "reached?"),
        ({"ratio": "mpirt / mpi4py", "at_most": 1.45}, "MISSED?"),
        ({"ratio": "mpirt / mpi4py", "at_least": 2.0}, "MISSED"),
        ({"ratio": "mpirt / mpi4py", "at_least": 1.2, "at_most": 2.0}, "reached"),
        ({"ratio": "mpirt", "at_most": 2000.0}, "reached"),  # a value, in the row's unit
        ({"ratio": "mpirt", "at_most": 1000.0}, "MISSED"),
        ({"ratio": "mpirt / tensorflow", "at_most": 1.0}, "not measured"),
    ],
)
def test_a_verdict_doubts_itself_where_the_target_lies_within_the_spread(figures: Any, target: Any, verdict: str) -> None:
    report = figures.Report("edge")
    mpirt, mpi4py = figures.Measured([[1.4e-3], [1.5e-3], [1.6e-3]]), figures.Measured([[1e-3]] * 3)
    report.row("8 B", "round trip", "us", {"mpirt": mpirt, "mpi4py": mpi4py}, target)
    assert report.rows[0]["verdict"] == verdict


def test_contestants_with_different_rounds_are_refused_with_both_counts(figures: Any) -> None:
    report = figures.Report("edge")
    with pytest.raises(ValueError, match="edge, 8 B: mpirt has 2 rounds and mpi4py 1; each round measures all"):
        report.row("8 B", "round trip", "us", {"mpirt": figures.Measured([[1.0], [1.0]]), "mpi4py": figures.Measured([[1.0]])})


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "reached"), (2.0, "MISSED")])
def test_growth_is_the_power_of_the_size(figures: Any, power: float, verdict: str) -> None:
    report = figures.Report("planning")
    sizes = [1_000, 10_000, 100_000]
    report.growth("plan", sizes, [figures.Measured([[3e-6 * size**power], [5e-6 * size**power]]) for size in sizes])
    (row,) = report.rows
    assert row["values"]["mpirt"]["median"] == pytest.approx(power)
    assert row["verdict"] == verdict


def test_what_is_written_is_what_was_reported_and_where(figures: Any, tmp_path: Path) -> None:
    report = figures.Report("edge")
    with report.others:
        pass
    report.row("8 B", "round trip", "us", {"mpirt": figures.Measured([[1e-6]])}, note="why")
    report.leave_out("sizes", ["8 B", "1 KiB", "1 MiB"], ["8 B"])
    report.leave_out("kinds", ["a"], ["a"])
    report.write(tmp_path / "edge.json")
    found = json.loads((tmp_path / "edge.json").read_text())
    assert set(found) == {"line", "machine", "rows", "noise", "left out"}
    assert found["left out"] == ["sizes 1 KiB, 1 MiB"]
    assert found["line"] == "edge"
    assert found["machine"]["cores"] >= 1
    assert found["rows"] == [
        {
            "case": "8 B",
            "figure": "round trip",
            "unit": "us",
            "values": {"mpirt": {"median": 1.0, "p10": 1.0, "p90": 1.0, "n": 1}},
            "ratios": {},
            "target": None,
            "note": "why",
            "verdict": "",
        }
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "edge.json"]


def test_rounds_are_fewer_with_quick_and_as_asked_for_where_given(figures: Any) -> None:
    parser = figures.arguments("what it does", rounds=9, quick_rounds=2)
    assert parser.parse_args([]).rounds == 9
    assert parser.parse_args(["--quick"]).rounds == 2
    assert parser.parse_args(["--quick", "--rounds", "4"]).rounds == 4
