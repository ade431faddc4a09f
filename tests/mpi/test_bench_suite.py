"""The benchmark suite's one command, with the tiniest sizes: what it leaves behind, and that a line which fails is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mpirt as tf

RUN = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "run.py"

pytestmark = pytest.mark.one_mpi


def run(results: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUN), "--quick", "--rounds", "2", "--timeout", "60", "--tensorflow", ""]
    command += ["--results", str(results), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def test_a_quick_run_leaves_ratios_of_mpirt_and_bare_mpi_side_by_side(tmp_path: Path) -> None:
    ran = run(tmp_path, "--only", "edge", "--", "--sizes", "8", "65536")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["failed"] == {}
    (report,) = found["reports"]
    assert (report["line"], report["ranks"], report["machine"]["ranks"]) == ("edge", 2, 2)
    echo = [row for row in report["rows"] if row["figure"] == "round trip"]
    assert [row["case"] for row in echo] == ["8 B", "64 KiB"]
    for row in echo:
        assert {"mpirt", "mpirt run", "mpi4py", "limit"} <= set(row["values"])
        assert row["values"]["mpirt"]["median"] > row["values"]["limit"]["median"] > 0
        ratio = row["ratios"]["mpirt / mpi4py"]
        assert ratio["n"] == 2
        assert ratio["p10"] <= ratio["median"] <= ratio["p90"]
        assert row["target"]["ratio"] == "mpirt / mpi4py"
    assert "edge: round trip" in ran.stdout
    table = (tmp_path / "results.md").read_text().splitlines()
    assert [line.split(" | ")[3] for line in table if line.startswith("| edge | 2 | round trip, us")] == ["8 B", "64 KiB"]
    assert [line.split(" | ")[0] for line in table[table.index("**edge on 2 ranks: round trip**, us") :][4:6]] == ["| 8 B", "| 64 KiB"]
    assert "Left out of edge on 2 ranks: sizes 1 KiB, 1 MiB, 16 MiB, 64 MiB, 256 MiB." in table


def test_a_line_that_fails_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    ran = run(tmp_path, "--only", "edge,operations", "--", "--operations", "10")  # which only one of them knows
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["failed"]) == ["edge on 2 ranks"]
    assert "unrecognized arguments: --operations 10" in found["failed"]["edge on 2 ranks"]
    assert [report["line"] for report in found["reports"]] == ["operations"]
    assert ran.stdout.splitlines()[-1] == "failed: edge on 2 ranks"


def test_a_line_that_fails_beside_tensorflow_is_told_with_why_and_measured_without_it(tmp_path: Path) -> None:
    ran = run(tmp_path, "--only", "operations", "--tensorflow", "/no/python", "--", "--operations", "10")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["failed"]) == ["operations on 1 ranks, with TensorFlow"]
    assert "can't start /no/python tensorflow_peer.py: " in found["failed"]["operations on 1 ranks, with TensorFlow"]
    assert [report["line"] for report in found["reports"]] == ["operations"]


def test_a_line_that_nobody_knows_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    ran = run(tmp_path, "--only", "edges")
    assert ran.returncode == 2
    assert "no line is called 'edges'; there are edge, " in ran.stderr


@pytest.mark.ranks(2)
def test_what_messages_cost_is_measured_with_boxes_for_ranks_of_one_host_and_with_messages_for_those_that_share_no_memory() -> None:
    sys.path.insert(0, str(RUN.parent))
    import message_costs
    from message_costs import SIZES, MessageCosts, hops_of
    from tracks import BOX, MESSAGE, PACKET

    for table in (SIZES, message_costs.MEETINGS):  # large ones take longer than a test may
        table.update({way: sizes if way in (BOX, PACKET) else sizes[:2] for way, sizes in table.items()})
    cluster = tf.cluster({"worker": 2})
    from mpi4py import MPI

    messages = MessageCosts(cluster, MPI.COMM_WORLD.Dup())
    messages.sample()
    costs = messages.costs()
    relays = dict(zip(messages._relays, messages._steps[-len(messages._relays) :], strict=True))
    for way in (BOX, PACKET):
        for nbytes in SIZES[way]:
            assert all(cost(way, nbytes) > 0 for cost in (costs.post_s, costs.send_s, costs.take_s))
            sent = cluster.transport.counters.messages_sent, cluster.transport.counters.boxes_sent
            relays[way, nbytes]._sample_once()
            now = cluster.transport.counters.messages_sent, cluster.transport.counters.boxes_sent
            hops = hops_of(nbytes) // 2  # of each rank
            assert (now[0] - sent[0], now[1] - sent[1]) == ((0, hops) if way == BOX else (hops, 0)), (way, nbytes)
    assert costs.post_s(MESSAGE, 1024) > 0
