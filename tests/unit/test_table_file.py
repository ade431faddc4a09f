"""Rank table files: every malformed table is refused with file, entry, reason and mend."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt.cluster.launchers import Host
from mpirt.cluster.rank_table import RankTable
from mpirt.errors import InvalidArgumentError


def read(text: str, hosts: list[Host] | None = None) -> RankTable:
    return RankTable.from_text(text, hosts=hosts, source="t.toml")


def toml(body: str) -> str:
    return "version = 1\n" + body


HOSTS = '[[hosts]]\nname = "a[1-2]"\nslots = 2\ngpus = 1\ncores = 2\n'
JOB = '[[job]]\nname = "w"\ncount = 1\n'
RANK = '[[rank]]\nrank = 0\njob = "w"\ntask = 0\n'
FORMS = (
    "write 'rank N = HOST /job:NAME/task:N [devices=...] [cores=...]', 'rank N = HOST spare', "
    "or 'fold = true', 'share = true', 'sparse = true'; HOST may be *"
)

REFUSED = {
    # the whole file
    "no version": (JOB, "no version = 1, the only version there is", "write version = 1 at the top"),
    "unknown version": ("version = 2\n" + JOB, "no version = 1, the only version there is", "write version = 1 at the top"),
    "empty file": ("", "no version = 1, the only version there is", "write version = 1 at the top"),
    "no task": ("version = 1\n", "no rank has a task", "add a [[job]] with a count, or [[rank]] entries"),
    "unknown key": (toml("jobs = 1"), "unknown key 'jobs'", "use only version, hosts, job, rank, spares, fold, share, sparse"),
    "not a list of tables": (toml("[job]"), "job is not a list of tables", "write [[job]] above each"),
    "fold is no flag": (toml("fold = 1\n" + JOB), "fold = 1 is neither true nor false", "write fold = true, or leave it out"),
    "spares is no number": (
        toml("spares = -1\n" + JOB),
        "spares = -1 is not a whole number from 0 up",
        "write spares = 0 or more",
    ),
    # hosts
    "host twice": (toml(HOSTS + '[[hosts]]\nname = "a1"\n' + JOB), "hosts[1]: host 'a1' twice", "list each host once"),
    "host without name": (toml("[[hosts]]\nslots = 1\n"), "hosts[0]: no name", 'write name = "h1" or name = "h[1-3]"'),
    "host with an unknown key": (
        toml('[[hosts]]\nname = "a"\nslot = 1\n'),
        "hosts[0]: unknown key 'slot'",
        "use only name, slots, gpus, cores",
    ),
    "bad hostlist": (
        toml('[[hosts]]\nname = "a[1"\n'),
        "hosts[0]: hostlist 'a[1' has an empty host or unbalanced brackets",
        "write names and ranges like h[1-3,7]",
    ),
    "backwards hostlist": (
        toml('[[hosts]]\nname = "a[2-1]"\n'),
        "hosts[0]: the range '2-1' runs backwards",
        "write names and ranges like h[1-3,7]",
    ),
    "huge hostlist": (
        toml('[[hosts]]\nname = "a[1-999999]"\n'),
        "hosts[0]: the range '1-999999' is too large: at most 65536 numbers",
        "write names and ranges like h[1-3,7]",
    ),
    "bad host name": (
        toml('[[hosts]]\nname = "a/b"\n'),
        "hosts[0]: bad host name 'a/b'",
        "use letters, digits, '_', '.', ':', '-'",
    ),
    "no slots": (
        toml('[[hosts]]\nname = "a"\nslots = 0\n'),
        "hosts[0]: slots = 0 is not a whole number from 1 up",
        "write slots = 1 or more",
    ),
    # explicit ranks
    "rank on two hosts": (
        toml(RANK + 'host = "a1"\n' + RANK.replace("task = 0", "task = 1") + 'host = "a2"\n'),
        "rank[1]: rank 0 is on a1 and on a2",
        "give all entries of a rank the same host",
    ),
    "rank gap": (
        toml(RANK + RANK.replace("= 0", "= 2").replace("task = 2", "task = 1")),
        "the ranks must be 0-2, but rank 1 is missing",
        "number the ranks without holes",
    ),
    "task twice": (
        toml(RANK + RANK.replace("rank = 0", "rank = 1")),
        "rank[1]: /job:w/task:0 is given twice (first in rank[0])",
        "give each task one rank",
    ),
    "task of an explicit rank again by a job": (
        toml(RANK + JOB),
        "job[0] w: /job:w/task:0 is given twice (first in rank[0])",
        "give each task one rank",
    ),
    "task gap": (
        toml(RANK.replace("task = 0", "task = 1")),
        "the tasks of job 'w' must be 0-0, but they are 1",
        "number the tasks without holes, or write sparse = true",
    ),
    "no rank": (toml('[[rank]]\njob = "w"\ntask = 0\n'), "rank[0]: no rank", "write rank = N"),
    "no task number": (toml('[[rank]]\nrank = 0\njob = "w"\n'), "rank[0]: no task", "write task = N"),
    "no job": (toml("[[rank]]\nrank = 0\ntask = 0\n"), "rank[0]: no job", 'write job = "worker"'),
    "bad job name": (
        toml(RANK.replace('"w"', '"1w"')),
        "rank[0]: bad job name '1w'",
        "use a letter, then letters, digits, '_', '.', '-'",
    ),
    "rank is text": (
        toml(RANK.replace("rank = 0", 'rank = "0"')),
        "rank[0]: rank = '0' is not a whole number from 0 up",
        "write rank = 0 or more",
    ),
    "rank is a flag": (
        toml(RANK.replace("rank = 0", "rank = true")),
        "rank[0]: rank = True is not a whole number from 0 up",
        "write rank = 0 or more",
    ),
    "host is a number": (toml(RANK + "host = 1\n"), "rank[0]: host = 1 is not a name", 'write host = "..."'),
    "bad name of a host": (
        toml(RANK + 'host = "a b"\n'),
        "rank[0]: bad host name 'a b'",
        "use letters, digits, '_', '.', ':', '-'",
    ),
    "spare with a task": (toml(RANK + "spare = true\n"), "rank[0]: unknown key 'job'", "use only rank, host, spare"),
    "spare and task on one rank": (
        toml(RANK + "[[rank]]\nrank = 0\nspare = true\n"),
        "rank[1]: rank 0 is a spare, and is also named by another entry",
        "give the spare a rank of its own",
    ),
    "task on a spare": (
        toml("[[rank]]\nrank = 0\nspare = true\n" + RANK),
        "rank[1]: rank 0 is a spare, and is also named by another entry",
        "give the spare a rank of its own",
    ),
    "host that is not listed": (
        toml(HOSTS + RANK + 'host = "a9"\n'),
        "rank[0]: host 'a9' is not among the hosts (a1, a2)",
        "use one of these hosts, or add it under [[hosts]] or to the allocation",
    ),
    "more ranks than slots": (
        toml(HOSTS + "".join(RANK.replace("= 0", f"= {i}") + 'host = "a1"\n' for i in range(3))),
        "rank[2]: host a1 has 2 slot(s), all taken (rank 0-1)",
        "use another host, or give this one more slots",
    ),
    # devices and cores
    "bad device": (
        toml(RANK + 'devices = ["gpu"]\n'),
        "rank[0]: bad device 'gpu'",
        "write cpu:0, gpu:1, gpu:0-3, gpu:local or gpu:*",
    ),
    "no device": (
        toml(RANK + "devices = []\n"),
        "rank[0]: devices = [] is not a list of names",
        'write devices = ["...", "..."]',
    ),
    "device twice": (
        toml(RANK + 'devices = ["gpu:0-1", "gpu:1"]\n'),
        "rank[0]: a device twice in GPU:0, GPU:1, GPU:1",
        "name each device once",
    ),
    "backwards devices": (
        toml(RANK + 'devices = ["gpu:3-1"]\n'),
        "rank[0]: the range '3-1' runs backwards",
        "write numbers and ranges like 0-3,7",
    ),
    "gpu that the host has not": (
        toml(HOSTS + JOB + 'devices = ["gpu:1"]\n'),
        "job[0] w: GPU:1 on a1, which has 1 GPU(s)",
        "use a GPU that the host has",
    ),
    "gpu on two ranks": (
        toml(HOSTS + JOB.replace("1", "2") + 'devices = ["gpu:0"]\n'),
        "job[0] w: GPU:0 of a1 is given to ranks 0 and 1",
        "give each rank a GPU of its own, or write share = true at the top to mean it",
    ),
    "more local gpus than there are": (
        toml(HOSTS + JOB.replace("1", "2") + 'devices = ["gpu:local"]\n'),
        "job[0] w: GPU:1 on a1, which has 1 GPU(s)",
        "use a GPU that the host has",
    ),
    "local gpu on any host": (
        toml(JOB + 'devices = ["gpu:local"]\n'),
        "job[0] w: device 'gpu:local' needs a host, and this task may run on any",
        "name hosts for it, or leave devices out: then a task has what its rank has",
    ),
    "all gpus of a host without known gpus": (
        toml('[[hosts]]\nname = "a"\n' + JOB + 'devices = ["gpu:*"]\n'),
        "job[0] w: device 'gpu:*' on a, of which no GPUs are known",
        "give the host gpus = N under [[hosts]]",
    ),
    "bad cores": (toml(RANK + "cores = [0]\n"), "rank[0]: cores = [0] is not a core list", 'write cores = "0-1,4"'),
    "core list that is none": (
        toml(RANK + 'cores = "0-"\n'),
        "rank[0]: '0-' is not a number or a range like 0-3",
        "write numbers and ranges like 0-3,7",
    ),
    "core twice": (
        toml(RANK + 'cores = "0-1,1"\n'),
        "rank[0]: a number twice in '0-1,1'",
        "name each once",
    ),
    "core that the host has not": (
        toml(HOSTS + JOB + "cores_per_task = 3\n"),
        "job[0] w: core 2 on a1, which has 2",
        "use fewer cores or another host",
    ),
    "core on two ranks": (
        toml(RANK + 'host = "h"\ncores = "0-1"\n' + RANK.replace("= 0", "= 1") + 'host = "h"\ncores = 1\n'),
        "rank[1]: core 1 of h is given to ranks 0 and 1",
        "give each core to one rank",
    ),
    "cores on any host": (
        toml(JOB + "cores_per_task = 1\n"),
        "job[0] w: cores_per_task needs a host, and these tasks may run on any",
        "name hosts, or leave it out",
    ),
    # jobs
    "neither count nor per_host": (
        toml('[[job]]\nname = "w"\n'),
        "job[0] w: count and per_host: give one of them",
        "write count = N (in all) or per_host = N (each host)",
    ),
    "both count and per_host": (
        toml(HOSTS + JOB + "per_host = 1\n"),
        "job[0] w: count and per_host: give one of them",
        "write count = N (in all) or per_host = N (each host)",
    ),
    "job of no tasks": (
        toml(JOB.replace("1", "0")),
        "job[0] w: count = 0 is not a whole number from 1 up",
        "write count = 1 or more",
    ),
    "job without name": (toml("[[job]]\ncount = 1\n"), "job[0]: no name", 'write name = "worker"'),
    "unknown place": (
        toml(HOSTS + JOB + 'place = "scatter"\n'),
        "job[0] w: place = 'scatter'",
        'write place = "pack" or "spread"',
    ),
    "pattern of no host": (toml(HOSTS + JOB + 'hosts = "b*"\n'), "job[0] w: no host matches b*", "the hosts are a1, a2"),
    "pattern without hosts": (
        toml(JOB + 'hosts = "a1"\n'),
        "job[0] w: the hosts are not known",
        "list them under [[hosts]], or start inside a job of the scheduler",
    ),
    "per_host without hosts": (
        toml('[[job]]\nname = "w"\nper_host = 1\n'),
        "job[0] w: the hosts are not known",
        "list them under [[hosts]], or start inside a job of the scheduler",
    ),
    "more tasks than slots by count": (
        toml(HOSTS + JOB.replace("1", "5")),
        "job[0] w: 5 tasks, but a1, a2 have 4 free slot(s)",
        "ask for fewer tasks or more slots",
    ),
    "more tasks than slots by per_host": (
        toml(HOSTS + '[[job]]\nname = "w"\nper_host = 3\n'),
        "job[0] w: host a1 has 2 slot(s), all taken (rank 0-1)",
        "use another host, or give this one more slots",
    ),
    # the flat form
    "flat line": ("rank 0 = h1 /job:w/task:0\nrank x = h1 spare", "line 2: can't read 'rank x = h1 spare'", FORMS),
    "flat field": ("rank 0 = h1 /job:w/task:0 gpus=1", "line 1: can't read 'rank 0 = h1 /job:w/task:0 gpus=1'", FORMS),
    "flat flag": ("fold = maybe\nrank 0 = h1 /job:w/task:0", "line 1: can't read 'fold = maybe'", FORMS),
    "flat spare with devices": (
        "rank 0 = h1 spare devices=cpu:0",
        "line 1: unknown key 'devices'",
        "use only rank, host, spare",
    ),
    "flat task twice": (
        "rank 0 = h1 /job:w/task:0\n\nrank 1 = h1 /job:w/task:0",
        "line 3: /job:w/task:0 is given twice (first in line 1)",
        "give each task one rank",
    ),
    "flat devices": (
        "rank 0 = h1 /job:w/task:0 devices=cpu:0,",
        "line 1: bad device ''",
        "write cpu:0, gpu:1, gpu:0-3, gpu:local or gpu:*",
    ),
}


@pytest.mark.parametrize(("text", "reason", "mend"), REFUSED.values(), ids=REFUSED.keys())
def test_malformed_tables_are_refused_with_file_entry_reason_and_mend(text: str, reason: str, mend: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read(text)
    assert str(caught.value) == f"t.toml: {reason}.\n  Mend: {mend}."


def test_a_host_outside_the_allocation_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read(toml(HOSTS + JOB), hosts=[Host("a1"), Host("b7")])
    assert str(caught.value) == (
        "t.toml: hosts[0]: host 'a2' is not in the allocation (a1, b7).\n  Mend: ask the scheduler for this host."
    )


def test_broken_toml_is_refused_with_its_line() -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape("t.toml: Invalid value (at line 2, column 8).")):
        read("version = 1\nfold = maybe\n")


def test_a_rank_far_too_high_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match="the ranks must be 0-999999999999, but rank 1 is missing"):
        read("rank 0 = * /job:w/task:0\nrank 999999999999 = * /job:w/task:1\n")


@given(st.text(alphabet="rank 01=h*/job:wtsdevicu,-#\n", max_size=80))
def test_any_text_is_a_table_or_refused(text: str) -> None:
    try:
        table = read(text)
    except InvalidArgumentError:
        return
    assert read(table.to_text()) == table
