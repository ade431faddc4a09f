"""Rank tables: what they say and what they survive. What is refused: test_table_file.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.launchers import Host
from mpirt.cluster.rank_table import RankTable
from mpirt.cluster.table_file import Entry
from mpirt.cluster.task import Task
from mpirt.errors import InvalidArgumentError, NotFoundError

HOSTFILES = Path(__file__).parents[2] / "hostfiles"

LAB = """
version = 1
[[hosts]]
name = "h1"
slots = 1
cores = 4
[[hosts]]
name = "h[2-3]"
slots = 2
gpus = 2
cores = 4
[[job]]
name = "ps"
count = 1
hosts = "h1"
devices = ["cpu:0"]
cores_per_task = 2
[[job]]
name = "worker"
per_host = 2
hosts = ["h2", "h3"]
devices = ["cpu:0", "gpu:local"]
cores_per_task = 2
"""
LAB_FLAT = """\
rank 0 = h1 /job:ps/task:0 devices=CPU:0 cores=0-1
rank 1 = h2 /job:worker/task:0 devices=CPU:0,GPU:0 cores=0-1
rank 2 = h2 /job:worker/task:1 devices=CPU:0,GPU:1 cores=2-3
rank 3 = h3 /job:worker/task:2 devices=CPU:0,GPU:0 cores=0-1
rank 4 = h3 /job:worker/task:3 devices=CPU:0,GPU:1 cores=2-3
"""


def read(text: str, world_size: int | None = None, hosts: list[Host] | None = None) -> RankTable:
    return RankTable.from_text(text, world_size, hosts, source="t.toml")


def toml(body: str) -> str:
    return "version = 1\n" + body


def ranks_of(table: RankTable) -> list[int]:
    return [table.rank_of(*task) for task in table.tasks]


# --- what a table says ---


def test_jobs_by_pattern_expand_to_the_flat_form() -> None:
    assert read(LAB).to_text() == LAB_FLAT


def test_look_ups_answer_for_tasks_and_ranks() -> None:
    table = read(LAB)
    assert table.num_ranks == 5
    assert table.tasks == (Task("ps", 0), *(Task("worker", i) for i in range(4)))
    assert table.rank_of("worker", 2) == 3
    assert table.tasks_of(3) == (Task("worker", 2),)
    assert table.devices_of("worker", 1) == ("CPU:0", "GPU:1")
    assert table.cores_of("worker", 1) == (2, 3)
    assert [table.host_of_rank(rank) for rank in range(5)] == ["h1", "h2", "h2", "h3", "h3"]
    assert table.spares == ()
    assert table.cluster_spec() == ClusterSpec({"ps": 1, "worker": 4})
    assert table.cluster_spec().jobs == ["ps", "worker"]


def test_unknown_tasks_and_ranks_are_refused_with_what_there_is() -> None:
    table = read(LAB)
    for ask in (table.rank_of, table.devices_of, table.cores_of):
        with pytest.raises(InvalidArgumentError) as caught:
            ask("worker", 4)
        assert str(caught.value) == (
            "t.toml: there is no task /job:worker/task:4: the tasks of job 'worker' are 0-3.\n"
            "  Mend: name a task of the rank table, or add this one to it."
        )
    with pytest.raises(InvalidArgumentError, match=r"no task /job:chief/task:0: the jobs are ps, worker\."):
        table.rank_of("chief", 0)
    for rank in (-1, 5):
        with pytest.raises(InvalidArgumentError, match=rf"^t.toml: there is no rank {rank}: the table has ranks 0-4\."):
            table.tasks_of(rank)
        with pytest.raises(InvalidArgumentError, match="there is no rank"):
            table.host_of_rank(rank)


def test_one_rank_may_host_many_tasks_in_the_order_of_the_file() -> None:
    flat = "rank 1 = * /job:w/task:1\nrank 0 = * /job:ps/task:0\nrank 1 = * /job:w/task:0 devices=gpu:0-1\n"
    entries = (Entry(0, Task("ps", 0)), Entry(1, Task("w", 1)), Entry(1, Task("w", 0), ("GPU:0", "GPU:1")))
    assert read(flat) == RankTable(entries, (None, None))
    assert read(flat).tasks_of(1) == (Task("w", 1), Task("w", 0))
    assert read(flat).tasks == (Task("ps", 0), Task("w", 0), Task("w", 1))
    rank = '[[rank]]\nrank = {}\njob = "{}"\ntask = {}\n'
    folded = toml(rank.format(1, "w", 1) + rank.format(0, "ps", 0) + rank.format(1, "w", 0) + 'devices = ["gpu:0-1"]')
    assert read(folded) == read(flat)


def test_tasks_folded_on_one_rank_take_one_slot() -> None:
    text = "rank 0 = a /job:w/task:0\nrank 0 = a /job:w/task:1\n"
    assert read(text, hosts=[Host("a", slots=1)]).tasks_of(0) == (Task("w", 0), Task("w", 1))


def test_jobs_come_in_the_order_of_their_first_rank() -> None:
    table = read("rank 1 = * /job:a/task:0\nrank 0 = * /job:b/task:1\nrank 2 = * /job:b/task:0\n")
    assert table.tasks == (Task("b", 0), Task("b", 1), Task("a", 0))
    assert table.cluster_spec().jobs == ["b", "a"]


def test_a_spare_rank_has_no_task_in_any_spelling() -> None:
    flat = read("rank 0 = * /job:w/task:0\nrank 1 = * spare\nrank 2 = spare\n")
    assert flat.spares == (1, 2)
    assert flat.tasks_of(1) == ()
    assert flat == read(toml('spares = 2\n[[job]]\nname = "w"\ncount = 1\n'))
    assert flat == read(toml('[[rank]]\nrank=0\njob="w"\ntask=0\n[[rank]]\nrank=1\nspare=true\n[[rank]]\nrank=2\nspare=true\n'))
    assert read("rank 0 = /job:w/task:0\nrank 1 = h2 spare\n").hosts == (None, "h2")


def test_explicit_ranks_come_first_and_jobs_number_on() -> None:
    table = read(toml('[[job]]\nname="w"\ncount=2\n[[rank]]\nrank=0\njob="ps"\ntask=0\ncores=3\n'))
    assert ranks_of(table) == [0, 1, 2]
    assert table.tasks[0] == Task("ps", 0)
    assert table.cores_of("ps", 0) == (3,)


def test_pack_fills_hosts_and_spread_takes_turns() -> None:
    body = '[[hosts]]\nname="a[1-3]"\nslots=2\n[[job]]\nname="w"\ncount=4\nplace="{}"\n'
    assert read(toml(body.format("pack"))).hosts == ("a1", "a1", "a2", "a2")
    assert read(toml(body.format("spread"))).hosts == ("a1", "a2", "a3", "a1")


def test_a_job_takes_the_slots_that_earlier_jobs_left() -> None:
    jobs = '[[job]]\nname="ps"\ncount=1\n[[job]]\nname="w"\ncount=3\nplace="spread"\n'
    table = read(toml('[[hosts]]\nname="a[1-2]"\nslots=2\n' + jobs))
    assert table.hosts == ("a1", "a1", "a2", "a2")


def test_gpu_local_counts_the_tasks_that_say_so_and_a_star_takes_all() -> None:
    body = '[[hosts]]\nname="a"\ngpus=3\n[[job]]\nname="ps"\ncount=1\n[[job]]\nname="w"\ncount=2\ndevices="gpu:local"\n'
    table = read(toml(body))
    assert [table.devices_of(*task) for task in table.tasks] == [None, ("GPU:0",), ("GPU:1",)]
    assert read("rank 0 = a /job:w/task:0 devices=cpu:0,GPU:*", hosts=[Host("a", gpus=2)]).devices_of("w", 0) == (
        "CPU:0",
        "GPU:0",
        "GPU:1",
    )


def test_cores_of_a_job_follow_the_cores_taken_on_the_host() -> None:
    table = read(toml('[[rank]]\nrank=0\njob="ps"\ntask=0\nhost="a"\ncores="0,2"\n[[hosts]]\nname="a"\n'
                      '[[job]]\nname="w"\ncount=2\ncores_per_task=2\n'))  # fmt: skip
    assert [table.cores_of(*task) for task in table.tasks] == [(0, 2), (3, 4), (5, 6)]


def test_share_allows_two_ranks_on_one_gpu_and_survives_the_flat_form() -> None:
    table = read("share = true\nrank 0 = h /job:w/task:0 devices=gpu:0\nrank 1 = h /job:w/task:1 devices=gpu:0\n")
    assert table.to_text().startswith("share = true\n")
    assert read(table.to_text()) == table


def test_tasks_folded_on_one_rank_may_share_its_gpu_and_cores() -> None:
    text = "rank 0 = h /job:w/task:0 devices=GPU:0 cores=1\nrank 0 = h /job:w/task:1 devices=GPU:0 cores=1\n"
    assert read(text).to_text() == text


def test_hosts_that_are_not_named_share_no_gpu() -> None:
    assert read("rank 0 = * /job:w/task:0 devices=gpu:0\nrank 1 = * /job:w/task:1 devices=gpu:0\n").num_ranks == 2


# --- hosts of the scheduler ---

ALLOCATION = [Host("n1", 2, 1), Host("n2", 2, 1)]


def test_a_job_that_names_no_hosts_is_bound_to_none_even_under_a_scheduler() -> None:
    text = toml('[[job]]\nname="w"\ncount=4\n')
    assert read(text, hosts=ALLOCATION) == read(text)
    assert read(text).hosts == (None,) * 4


def test_a_job_that_asks_for_hosts_gets_those_of_the_scheduler() -> None:
    job = '[[job]]\nname="w"\n'
    assert read(toml(job + 'count=3\nhosts="*"'), hosts=ALLOCATION).hosts == ("n1", "n1", "n2")
    assert read(toml(job + 'count=3\nplace="spread"'), hosts=ALLOCATION).hosts == ("n1", "n2", "n1")
    assert read(toml(job + "per_host=1"), hosts=ALLOCATION).hosts == ("n1", "n2")
    assert read(toml(job + 'count=1\nhosts="*2"'), hosts=ALLOCATION).hosts == ("n2",)


def test_a_star_without_known_hosts_is_any_host() -> None:
    assert read(toml('[[job]]\nname="w"\ncount=2\nhosts="*"')).hosts == (None, None)


def test_listed_hosts_take_what_they_leave_out_from_the_scheduler() -> None:
    text = toml('[[hosts]]\nname="n2.lab"\ngpus=2\n[[job]]\nname="w"\nper_host=2\ndevices="gpu:local"')
    assert read(text, hosts=ALLOCATION).hosts == ("n2.lab", "n2.lab")
    with pytest.raises(InvalidArgumentError, match=r"host n2.lab has 2 slot\(s\), all taken \(rank 0-1\)"):
        read(text.replace("per_host=2", "per_host=3"), hosts=ALLOCATION)


# --- other numbers of ranks ---


@pytest.mark.parametrize("text", [LAB, LAB_FLAT, "fold = true\n" + LAB_FLAT])
def test_one_process_hosts_every_task_of_any_table(text: str) -> None:
    table = read(text, world_size=1)
    assert table.num_ranks == 1
    assert table.tasks_of(0) == table.tasks == read(text).tasks
    assert table.hosts == (None,)
    assert table.cores_of("ps", 0) is None
    assert table.devices_of("worker", 3) == ("CPU:0", "GPU:1")


def test_fewer_ranks_fold_neighbours_when_the_table_allows_it() -> None:
    table = read("fold = true\n" + LAB_FLAT + "rank 5 = h3 spare\n", world_size=2)
    assert ranks_of(table) == [0, 0, 0, 1, 1]
    assert read(toml("fold = true\n") + LAB.replace("version = 1", ""), world_size=3).num_ranks == 3


def test_spares_are_given_up_before_tasks_share_a_rank() -> None:
    table = read("fold = true\nrank 0 = spare\nrank 1 = /job:w/task:0\nrank 2 = spare\nrank 3 = /job:w/task:1\n", world_size=3)
    assert ranks_of(table) == [0, 1]
    assert table.spares == (2,)


@pytest.mark.parametrize(
    ("text", "world_size", "mend"),
    [
        (LAB, 3, "fold = true"),
        (LAB, 6, "a spare rank for each rank too many"),
        ("fold = true\n" + LAB_FLAT, 6, "a spare rank for each rank too many"),
    ],
)
def test_another_number_of_ranks_is_refused(text: str, world_size: int, mend: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read(text, world_size)
    assert str(caught.value) == (
        f"t.toml: the table is for 5 ranks, but {world_size} started.\n"
        f"  Mend: start 5 ranks, or one, which hosts every task; or write {mend} in the table."
    )


@pytest.mark.parametrize(
    ("tasks", "world_size", "ranks"),
    [
        (4, 4, [0, 1, 2, 3]),
        (4, 2, [0, 0, 1, 1]),
        (5, 2, [0, 0, 0, 1, 1]),
        (7, 3, [0, 0, 0, 1, 1, 2, 2]),
        (3, 1, [0, 0, 0]),
        (2, 4, [0, 1]),
    ],
)
def test_default_table_folds_in_balanced_runs(tasks: int, world_size: int, ranks: list[int]) -> None:
    table = RankTable.default(ClusterSpec({"w": tasks}), world_size)
    assert ranks_of(table) == ranks
    assert table.spares == tuple(range(max(ranks) + 1, world_size))
    assert (table.num_ranks, table.source) == (world_size, "default")


def test_default_table_follows_the_order_of_the_spec_and_its_numbers() -> None:
    spec = ClusterSpec({"worker": 1, "ps": {0: "a:1", 3: "b:1"}})
    table = RankTable.default(spec, 3)
    assert table.tasks == tuple(spec.tasks()) == (Task("worker", 0), Task("ps", 0), Task("ps", 3))
    assert table.to_text().startswith("sparse = true\n")
    assert table.cluster_spec().as_dict()["ps"] == {0: "ps:0", 3: "ps:3"}


def test_default_table_without_a_spec_is_one_worker_a_rank() -> None:
    assert RankTable.default(None, 3).tasks == tuple(Task("worker", i) for i in range(3))


def test_default_table_of_a_spec_without_tasks_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^ClusterSpec\({'ps': \[\]}\) has no task\."):
        RankTable.default(ClusterSpec({"ps": []}), 2)


@given(st.integers(1, 40), st.integers(1, 40))
def test_default_blocks_are_contiguous_and_balanced(tasks: int, world_size: int) -> None:
    table = RankTable.default(ClusterSpec({"w": tasks}), world_size)
    assert ranks_of(table) == sorted(ranks_of(table))
    sizes = [len(table.tasks_of(rank)) for rank in range(world_size)]
    assert sum(sizes) == tasks
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


# --- files, text and fingerprint ---


def test_the_shipped_tables_say_the_same_and_run_anywhere() -> None:
    table = RankTable.from_file(HOSTFILES / "digits-4.toml", 4, ALLOCATION)
    assert table == RankTable.from_file(HOSTFILES / "digits-4.txt", 4)
    assert table.tasks == (Task("ps", 0), Task("ps", 1), Task("worker", 0), Task("worker", 1))
    assert ranks_of(table) == [0, 1, 2, 3]
    table.check_hosts(["any", "host", "will", "do"])
    assert table.source == str(HOSTFILES / "digits-4.toml")
    for file in ("digits-4.toml", "digits-4.txt"):
        assert ranks_of(RankTable.from_file(HOSTFILES / file, 2)) == [0, 0, 1, 1]
        assert ranks_of(RankTable.from_file(str(HOSTFILES / file), 1)) == [0, 0, 0, 0]


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        RankTable.from_file("no/such.toml", 1)
    assert str(missing.value) == (
        "rank table 'no/such.toml' can't be read: No such file or directory.\n"
        "  Mend: correct the path, or the setting MPIRT_RANK_TABLE."
    )
    (tmp_path / "t.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="not text in UTF-8"):
        RankTable.from_file(tmp_path / "t.toml", 1)


def test_fingerprint_is_the_sha256_of_the_text_and_differs_with_the_table() -> None:
    assert read(LAB).fingerprint() == hashlib.sha256(LAB_FLAT.encode()).hexdigest()
    assert RankTable.from_text(LAB_FLAT, source="other").fingerprint() == read(LAB).fingerprint()
    assert read(LAB_FLAT.replace("h3", "h4")).fingerprint() != read(LAB).fingerprint()


def test_comments_blank_lines_and_blanks_do_not_matter_in_the_flat_form() -> None:
    assert read("# a table\n\n  rank 0=h1   /job:w/task:0   # the only one\n").to_text() == "rank 0 = h1 /job:w/task:0\n"


@st.composite
def tables(draw: st.DrawFn) -> RankTable:
    """Any table: some ranks with several tasks, some with none; GPUs may be shared, each rank has cores of its own."""
    hosts = draw(st.lists(st.none() | st.sampled_from(["h1", "h2", "n-3.lab"]), min_size=1, max_size=6))
    names = st.tuples(st.sampled_from(["ps", "worker", "A.b-c_d"]), st.integers(0, 9))
    tasks = draw(st.lists(names, min_size=1, max_size=9, unique=True))
    ranks = sorted(draw(st.integers(0, len(hosts) - 1)) for _ in tasks)
    entries = []
    for rank, task in zip(ranks, tasks, strict=True):
        devices = draw(st.none() | st.lists(st.sampled_from(["CPU:0", "GPU:0", "GPU:11"]), min_size=1, unique=True).map(tuple))
        own = st.integers(20 * rank, 20 * rank + 19)
        cores = draw(st.none() | st.lists(own, min_size=1, unique=True).map(sorted).map(tuple))
        entries.append(Entry(rank, Task(*task), devices, cores))
    return RankTable(tuple(entries), tuple(hosts))


@given(tables())
def test_reading_the_text_back_gives_an_equal_table(table: RankTable) -> None:
    again = RankTable.from_text(table.to_text(), table.num_ranks)
    assert again == table
    assert again.tasks == table.tasks
    assert again.to_text() == table.to_text()


@given(tables(), st.integers(1, 6))
def test_folding_keeps_every_task_once_and_neighbours_together(table: RankTable, num_ranks: int) -> None:
    folded = table.folded(num_ranks)
    assert folded.num_ranks == num_ranks
    assert sorted(folded.tasks) == sorted(table.tasks)
    assert [e.task for e in folded.entries] == [e.task for e in table.entries]
    assert [e.rank for e in folded.entries] == sorted(e.rank for e in folded.entries)
    for rank in range(table.num_ranks):
        assert len({folded.rank_of(*task) for task in table.tasks_of(rank)}) <= 1


# --- where ranks really are ---


def test_check_hosts_compares_short_names() -> None:
    table = read("rank 0 = h1.lab.org /job:w/task:0\nrank 1 = H2 /job:w/task:1\nrank 2 = * /job:w/task:2\n")
    table.check_hosts(["h1", "h2.lab.org", "anywhere"])


def test_check_hosts_names_each_rank_that_is_elsewhere() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read(LAB).check_hosts(["h1", "h2", "h3", "h2", "h3"])
    assert str(caught.value) == (
        "t.toml: rank 2 must be on 'h2' but is on 'h3'; rank 3 must be on 'h3' but is on 'h2'.\n"
        "  Mend: make the launcher place ranks as the table says (a rankfile or a hostfile in rank order), "
        "or leave the host out of the table (or write *) where any will do."
    )
