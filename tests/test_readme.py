"""README.md is true: its programs run and print what it says, its files and options exist, its table of settings is complete."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mpirt import config
from mpirt.cluster.rank_table import RankTable
from tests.launch import rank_environment
from tests.mpirun_plugin import Mpirun

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


PROGRAMS = blocks("python")
PRINTS = ["total 36.0\n", "", "", ""]  # by program; the first is what the README says of it
COMMANDS = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines() if line.strip()]


def test_the_readme_says_what_its_first_program_prints() -> None:
    assert len(PROGRAMS) == len(PRINTS)
    assert f"`{PRINTS[0].strip()}`" in README


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_runs_in_one_process_in_an_empty_folder(number: int, tmp_path: Path) -> None:
    program = tmp_path / "script.py"
    program.write_text(PROGRAMS[number])
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-W", "error", str(program)]
    ran = subprocess.run(command, cwd=empty, env=rank_environment({}), capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, PRINTS[number], "")
    assert list(empty.iterdir()) == [], "it left something behind"


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_program_runs_the_same_on_several_ranks(mpirun: Mpirun, number: int, n: int, tmp_path: Path) -> None:
    result = mpirun(n, PROGRAMS[number], cwd=tmp_path, timeout=30)
    assert result.stdout == PRINTS[number], result
    assert "mpirt" not in result.stderr, result


def test_tasks_are_put_on_ranks_as_the_readme_says(mpirun: Mpirun) -> None:
    """With -n 4 one rank is a spare, with -n 2 neighbours share one: the README says so."""
    for n, hosted in ((2, ["ps:0 worker:0", "worker:1"]), (4, ["ps:0", "worker:0", "worker:1", ""])):
        shown = mpirun(n, PROGRAMS[0] + "print(cluster.rank, *(f'{t.job}:{t.index}' for t in cluster.tasks))\n").stdout
        lines = sorted(line for line in shown.splitlines() if not line.startswith("total"))
        assert lines == [f"{rank} {tasks}".strip() for rank, tasks in enumerate(hosted)]


def test_the_rank_table_is_one(tmp_path: Path) -> None:
    (table,) = blocks("toml")
    assert tomllib.loads(table)["version"] == 1
    path = tmp_path / "table.toml"
    path.write_text(table)
    for size, ranks in ((4, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (1, [0, 0, 0, 0])):
        found = RankTable.from_file(str(path), size)
        assert [str(task) for task in found.tasks] == [f"/job:{job}/task:{i}" for job in ("ps", "worker") for i in (0, 1)]
        assert [found.rank_of(task.job, task.index) for task in found.tasks] == ranks
    assert found.devices_of("worker", 1) == ("CPU:0",)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "git clone" not in c])
def test_the_files_and_options_of_a_command_exist(command: str) -> None:
    files = re.findall(r"(?<![\w/])\.?/?((?:scripts|jobs|hostfiles|tests)/[\w./-]+)", command)
    assert files, command
    for file in files:
        assert (ROOT / file).is_file(), f"{file} of: {command}"
    for name in re.findall(r"\b(MPIRT_\w+)=", command):
        assert name in config.SETTINGS
    script = ROOT / files[0]
    text = script.read_text()
    for option in re.findall(r"\s(--[a-z-]+)", command):
        assert option in text, f"{option} of: {command}"


def test_what_the_text_mentions_exists() -> None:
    for file in re.findall(r"`((?:scripts|jobs|hostfiles|tests)/[\w./-]+|[A-Z]+\.md)`", README):
        assert (ROOT / file).is_file(), file
    mpi = re.findall(r"`--mpi (\w+)`", README)
    assert mpi and all(name in (ROOT / "scripts" / "demo").read_text() for name in mpi)
    for name in re.findall(r"\bMPIRT_\w+", README):
        assert name in config.SETTINGS, name


def test_the_table_of_settings_is_complete_and_has_the_defaults() -> None:
    rows = re.findall(r"^\| `(MPIRT_\w+)` \| (.+?) \| (.+?) \|$", README, re.MULTILINE)
    said = {name: default for name, _, default in rows}
    assert said == {s.name: as_said(s.default) for s in config.SETTINGS.values()}


def as_said(default: object) -> str:
    return f"{default:g}" if isinstance(default, float) else str(int(default) if isinstance(default, bool) else default) or "none"


def test_the_scripts_say_how_they_are_used() -> None:
    for script in ("demo", "test"):
        ran = subprocess.run([ROOT / "scripts" / script, "--help"], capture_output=True, text=True, timeout=30, check=False)
        assert ran.returncode == 0 and f"scripts/{script}" in ran.stdout and "--mpi" in ran.stdout, ran
