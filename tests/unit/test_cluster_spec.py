"""ClusterSpec: the forms it takes, what it answers, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.task import Task

ADDRESSES: dict[str, list[str] | dict[int, str]] = {"worker": ["w0:1", "w1:1"], "ps": {0: "p0:1", 3: "p3:1"}}


def test_a_task_prints_as_its_device_string_and_sorts_by_job_then_number() -> None:
    assert str(Task("ps", 0)) == "/job:ps/task:0"
    assert sorted([Task("worker", 0), Task("ps", 10), Task("ps", 9)]) == [("ps", 9), ("ps", 10), ("worker", 0)]
    assert len({Task("ps", 0), Task("ps", 0), Task("ps", 1)}) == 2
    assert Task("ps", 4).index == 4


def test_jobs_and_tasks_keep_the_order_given() -> None:
    spec = ClusterSpec(ADDRESSES)
    assert spec.jobs == ["worker", "ps"]
    assert spec.tasks() == [("worker", 0), ("worker", 1), ("ps", 0), ("ps", 3)]


def test_a_sparse_job_counts_its_tasks_and_keeps_its_numbers() -> None:
    spec = ClusterSpec({"ps": {3: "p3:1", 0: "p0:1"}})
    assert spec.num_tasks("ps") == 2
    assert spec.task_indices("ps") == [0, 3]
    assert spec.job_tasks("ps") == ["p0:1", None, None, "p3:1"]
    assert spec.task_address("ps", 3) == "p3:1"


def test_as_dict_gives_lists_for_dense_jobs_and_maps_for_sparse_ones() -> None:
    assert ClusterSpec(ADDRESSES).as_dict() == {"worker": ["w0:1", "w1:1"], "ps": {0: "p0:1", 3: "p3:1"}}
    assert ClusterSpec({"ps": {1: "b:1", 0: "a:1"}, "worker": []}).as_dict() == {"ps": ["a:1", "b:1"], "worker": []}


def test_tasks_given_by_count_have_labels_for_addresses() -> None:
    spec = ClusterSpec({"ps": 1, "worker": 2})
    assert spec.tasks() == [("ps", 0), ("worker", 0), ("worker", 1)]
    assert spec.task_address("worker", 1) == "worker:1"
    assert spec.task_of_address("worker:1") == Task("worker", 1)


def test_an_address_finds_its_task_with_and_without_scheme() -> None:
    spec = ClusterSpec({"ps": ["grpc://a:1"], "worker": ["b:1"]})
    assert spec.task_of_address("a:1") == spec.task_of_address("grpc://a:1") == Task("ps", 0)
    assert spec.task_of_address("grpc://b:1") == Task("worker", 0)
    with pytest.raises(ValueError) as caught:
        spec.task_of_address("grpc://c:1")
    assert str(caught.value) == "ClusterSpec: no task has the address 'c:1'; there are a:1, b:1."


def test_equality_ignores_the_form_and_the_order_of_jobs_but_not_the_addresses() -> None:
    spec = ClusterSpec(ADDRESSES)
    same = ClusterSpec({"ps": {3: "p3:1", 0: "p0:1"}, "worker": ("w0:1", "w1:1")})
    assert spec == ClusterSpec(spec) == same
    assert hash(spec) == hash(same)
    assert spec != ClusterSpec({"worker": 2, "ps": {0: "p0:1", 3: "p3:1"}})
    assert spec != ADDRESSES


def test_a_spec_is_false_when_it_has_no_job() -> None:
    assert not ClusterSpec({})
    assert ClusterSpec({"ps": 0})


def test_a_cluster_def_goes_in_and_out() -> None:
    spec = ClusterSpec(ADDRESSES)
    message = spec.as_cluster_def()
    assert [(job.name, dict(job.tasks)) for job in message.job] == [
        ("worker", {0: "w0:1", 1: "w1:1"}),
        ("ps", {0: "p0:1", 3: "p3:1"}),
    ]
    assert ClusterSpec(message) == spec


def test_anything_with_jobs_like_a_cluster_def_is_one() -> None:
    message = SimpleNamespace(job=[SimpleNamespace(name="ps", tasks={0: "a:1"})])
    assert ClusterSpec(message).as_dict() == {"ps": ["a:1"]}
    message.job.append(SimpleNamespace(name="ps", tasks={1: "b:1"}))
    with pytest.raises(ValueError, match="^ClusterSpec: job 'ps' is given twice.$"):
        ClusterSpec(message)


def test_repr_can_be_read_back() -> None:
    spec = ClusterSpec(ADDRESSES)
    assert repr(spec) == "ClusterSpec({'worker': ['w0:1', 'w1:1'], 'ps': {0: 'p0:1', 3: 'p3:1'}})"
    assert eval(repr(spec)) == spec


@pytest.mark.parametrize(
    ("cluster", "error", "message"),
    [
        ({"ps": "a:1"}, TypeError, "ClusterSpec: job 'ps' is given as the string 'a:1'; write a list: ['a:1']."),
        ({"ps": [5]}, TypeError, "ClusterSpec: the address of task 0 of job 'ps' must be a string, not 5."),
        ({"ps": {0: None}}, TypeError, "ClusterSpec: the address of task 0 of job 'ps' must be a string, not None."),
        (
            {"ps": 2.0},
            TypeError,
            "ClusterSpec: job 'ps': expected a count, a list of addresses or task numbers, not 2.0.",
        ),
        (
            {"ps": True},
            TypeError,
            "ClusterSpec: job 'ps': expected a count, a list of addresses or task numbers, not True.",
        ),
        (
            {"ps": {"0": "a:1"}},
            TypeError,
            "ClusterSpec: job 'ps': expected a count, a list of addresses or task numbers, not '0'.",
        ),
        (
            [("ps", ["a:1"])],
            TypeError,
            "ClusterSpec: expected a dict of job names to tasks, a ClusterSpec or a ClusterDef, not list: [('ps', ['a:1'])].",
        ),
        (
            5,
            TypeError,
            "ClusterSpec: expected a dict of job names to tasks, a ClusterSpec or a ClusterDef, not int: 5.",
        ),
        ({7: 1}, TypeError, "ClusterSpec: a job name must be a string, not 7."),
        ({"1ps": 1}, ValueError, "ClusterSpec: job name '1ps' must be a letter, then letters, digits, '_', '.', '-'."),
        ({"": 1}, ValueError, "ClusterSpec: job name '' must be a letter, then letters, digits, '_', '.', '-'."),
        ({"ps": -1}, ValueError, "ClusterSpec: job 'ps': -1 is negative."),
        ({"ps": {-1: "a:1"}}, ValueError, "ClusterSpec: job 'ps': -1 is negative."),
        ({"ps": [""]}, ValueError, "ClusterSpec: the address of task 0 of job 'ps' is empty."),
        (
            {"ps": ["a:1", "a:1"]},
            ValueError,
            "ClusterSpec: /job:ps/task:1 and /job:ps/task:0 have the same address 'a:1'.",
        ),
        (
            {"ps": ["a:1"], "worker": ["grpc://a:1"]},
            ValueError,
            "ClusterSpec: /job:worker/task:0 and /job:ps/task:0 have the same address 'a:1'.",
        ),
    ],
)
def test_refused_clusters_say_which_part_and_why(cluster: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        ClusterSpec(cluster)
    assert str(caught.value) == message


def test_unknown_jobs_and_tasks_are_value_errors_that_list_what_there_is() -> None:
    spec = ClusterSpec(ADDRESSES)
    for ask in (spec.num_tasks, spec.task_indices, spec.job_tasks):
        with pytest.raises(ValueError, match="^ClusterSpec: no job is named 'chief'; there are worker, ps.$"):
            ask("chief")
    with pytest.raises(ValueError) as caught:
        spec.task_address("ps", 1)
    assert str(caught.value) == "ClusterSpec: job 'ps' has no task 1; it has [0, 3]."
