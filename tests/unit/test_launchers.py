"""Launcher and scheduler environments, as recorded from real jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpirt.cluster.launchers import Allocation, Host, LaunchInfo, detect, from_env
from mpirt.errors import InvalidArgumentError

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
BATCH = {  # a batch script: one process, though SLURM_NTASKS says 4
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_CPUS_PER_NODE": "8(x2)",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
STEP = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n2",
    "SLURM_STEP_TASKS_PER_NODE": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
DAEMONS = {  # what ranks inherit when mpirun started one daemon on each node by srun
    "SLURM_STEP_NODELIST": "n2",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_STEP_NUM_TASKS": "1",
}


@pytest.mark.parametrize(
    ("environ", "info"),
    [
        (OPEN_MPI, LaunchInfo("mpirun (Open MPI)", 2, 4, 0)),
        (HYDRA, LaunchInfo("mpiexec (hydra)", 3, 4, 1)),
        (STEP, LaunchInfo("srun", 1, 3, 1)),
        (STEP | {"PMI_RANK": "4", "PMI_SIZE": "5"}, LaunchInfo("srun", 4, 5, 1)),  # all components of a heterogeneous job
        (BATCH | DAEMONS | OPEN_MPI, LaunchInfo("mpirun (Open MPI)", 2, 4, 0)),
        (BATCH | DAEMONS | HYDRA, LaunchInfo("mpiexec (hydra)", 3, 4, 1)),
        (
            {"JSM_NAMESPACE_RANK": "5", "JSM_NAMESPACE_SIZE": "6", "JSM_NAMESPACE_LOCAL_RANK": "1"},
            LaunchInfo("jsrun", 5, 6, 1),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, LaunchInfo("a PMI launcher", 0, 2, None)),
    ],
)
def test_detect_knows_the_launcher_and_what_it_says(environ: dict[str, str], info: LaunchInfo) -> None:
    assert detect(environ) == info


@pytest.mark.parametrize(
    "environ",
    [{}, BATCH, {"OMPI_COMM_WORLD_SIZE": "4"}, {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, {"PBS_NODEFILE": "x"}],
)
def test_detect_finds_none_by_hand_in_a_batch_script_or_with_half_an_environment(environ: dict[str, str]) -> None:
    assert detect(environ) is None


@pytest.mark.parametrize("size", ["four", "-4", "", "²"])
def test_detect_refuses_a_size_that_is_no_number(size: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        detect(HYDRA | {"PMI_SIZE": size})
    assert str(caught.value) == (
        f"environment variable PMI_SIZE={size!r} can't be read: expected a number that is not negative.\n"
        "  Mend: correct or unset the variable, or list the hosts under [[hosts]] in the rank table."
    )


def hosts(environ: dict[str, str]) -> list[tuple[str, int | None, int | None]]:
    allocation = from_env(environ)
    assert allocation is not None
    return [(host.name, host.slots, host.gpus) for host in allocation.hosts]


def test_a_batch_script_sees_the_hosts_of_the_job() -> None:
    assert from_env(BATCH) == Allocation("Slurm", (Host("n1", 2), Host("n2", 2)))


def test_a_step_sees_its_own_hosts() -> None:
    assert hosts(STEP) == [("n2", 3, None)]


@pytest.mark.parametrize("launcher", [OPEN_MPI, HYDRA])
def test_a_rank_of_mpirun_sees_the_hosts_of_the_job_not_of_the_step_of_the_daemons(launcher: dict[str, str]) -> None:
    assert hosts(BATCH | DAEMONS | launcher) == [("n1", 2, None), ("n2", 2, None)]


def test_slurm_counts_repeat_and_fall_back_to_cores() -> None:
    job = {"SLURM_JOB_NODELIST": "a[1-3],b"}
    slots = [(name, slots) for name, slots, _ in hosts(job | {"SLURM_TASKS_PER_NODE": "2(x3),1"})]
    assert slots == [("a1", 2), ("a2", 2), ("a3", 2), ("b", 1)]
    assert hosts(job | {"SLURM_JOB_CPUS_PER_NODE": "4(x4)"})[3] == ("b", 4, None)


@pytest.mark.parametrize(("text", "gpus"), [("2", 2), ("a100:2", None), ("", None)])
def test_slurm_gpus_are_taken_when_they_are_a_plain_count(text: str, gpus: int | None) -> None:
    assert hosts(BATCH | {"SLURM_GPUS_ON_NODE": text}) == [("n1", 2, gpus), ("n2", 2, gpus)]


def test_a_heterogeneous_job_has_the_hosts_of_all_its_components() -> None:
    environ = BATCH | {
        "SLURM_HET_SIZE": "2",
        "SLURM_JOB_NODELIST_HET_GROUP_0": "n1",
        "SLURM_TASKS_PER_NODE_HET_GROUP_0": "1",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "n[2-3]",
        "SLURM_TASKS_PER_NODE_HET_GROUP_1": "2(x2)",
    }
    assert hosts(environ) == [("n1", 1, None), ("n2", 2, None), ("n3", 2, None)]


def test_a_pbs_node_file_gives_a_slot_for_each_line(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("h2\nh1\n\nh2\n")
    assert from_env({"PBS_NODEFILE": str(tmp_path / "nodes")}) == Allocation("PBS", (Host("h2", 2), Host("h1", 1)))


def test_lsf_lists_hosts_in_three_ways_without_the_launch_node(tmp_path: Path) -> None:
    (tmp_path / "ranks").write_text("launch1\nrank 0=h1 slot=0\nrank 1=h1 slot=1\n")
    expected = Allocation("LSF", (Host("h1", 2), Host("h2", 1)))
    assert from_env({"LSB_MCPU_HOSTS": "batch3 1 h1 2 h2 1", "LSB_HOSTS": "x"}) == expected
    assert from_env({"LSB_HOSTS": "batch3 h1 h1 h2"}) == expected
    assert hosts({"LSB_DJOB_RANKFILE": str(tmp_path / "ranks")}) == [("h1", 2, None)]


def test_a_host_that_looks_like_a_launch_node_stays_when_it_is_the_only_one() -> None:
    assert hosts({"LSB_MCPU_HOSTS": "batch3 4"}) == [("batch3", 4, None)]


@pytest.mark.parametrize("environ", [{}, {"SLURM_JOB_ID": "7"}, HYDRA])
def test_outside_a_job_there_is_no_allocation(environ: dict[str, str]) -> None:
    assert from_env(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            BATCH | {"SLURM_TASKS_PER_NODE": "2"},
            "environment variable SLURM_TASKS_PER_NODE='2' can't be read: "
            "it speaks of 1 hosts, but SLURM_JOB_NODELIST='n[1-2]' of 2.",
        ),
        (
            BATCH | {"SLURM_TASKS_PER_NODE": "2(y2)"},
            "environment variable SLURM_TASKS_PER_NODE='2(y2)' can't be read: '2(y2)' is not a count like 2 or 2(x3).",
        ),
        (
            BATCH | {"SLURM_JOB_NODELIST": "n[2-1]"},
            "environment variable SLURM_JOB_NODELIST='n[2-1]' can't be read: the range '2-1' runs backwards.",
        ),
        ({"SLURM_JOB_NODELIST": "n1"}, "the scheduler's environment has no SLURM_JOB_CPUS_PER_NODE."),
        ({"SLURM_HET_SIZE": "1"}, "the scheduler's environment has no SLURM_JOB_NODELIST_HET_GROUP_0."),
        (
            {"LSB_MCPU_HOSTS": "h1 4 h2"},
            "environment variable LSB_MCPU_HOSTS='h1 4 h2' can't be read: "
            "expected host and count in turn, like 'h1 4 h2 4'.",
        ),
        (
            {"PBS_NODEFILE": "no/such/file"},
            "environment variable PBS_NODEFILE='no/such/file' can't be read: "
            "[Errno 2] No such file or directory: 'no/such/file'.",
        ),
    ],
)
def test_contradictory_environments_are_refused_with_variable_and_value(environ: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        from_env(environ)
    assert caught.value.message == message
    assert caught.value.hint.startswith("correct or unset the variable")
