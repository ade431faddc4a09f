"""replica_device_setter: which task each operation asks for, against what TensorFlow answered (tests/golden)."""

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpirt import dtypes
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.graph import device_scope
from mpirt.graph.graph import Graph, GraphKeys, Operation
from mpirt.ops import math_ops, resource_ops, state_ops
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.variables import Variable
from mpirt.train.device_setter import (
    GreedyLoadBalancingStrategy,
    NameHashStrategy,
    byte_size_load_fn,
    replica_device_setter,
)

OPS = (math_ops, resource_ops)  # used by the names of their op types
GOLDEN = Path(__file__).parent.parent / "golden" / "tf_device_golden.json"
CLUSTER = {"ps": ["h1:1", "h2:1"], "worker": ["h3:1", "h4:1", "h5:1"]}
SPARSE = {"ps": {0: "h1:1", 3: "h2:1"}, "worker": ["h3:1"]}

# How the setter of each golden case was called; the cases "merge=T/F inner X" are in INNER.
SETTERS: dict[str, dict[str, Any]] = {
    "no args": {},
    "ps_tasks=2": {"ps_tasks": 2},
    "ps_tasks=2 resource vars": {"ps_tasks": 2},
    "cluster=dict(2ps)": {"cluster": CLUSTER},
    "cluster=ClusterSpec": {"cluster": ClusterSpec(CLUSTER)},
    "cluster=ClusterDef": {"cluster": ClusterSpec(CLUSTER).as_cluster_def()},
    "cluster + ps_tasks=5 (ignored)": {"cluster": CLUSTER, "ps_tasks": 5},
    "cluster has no ps job": {"cluster": {"worker": ["h3:1"]}},
    "cluster ps empty list": {"cluster": {"ps": [], "worker": ["h3:1"]}},
    "cluster sparse ps {0:..,3:..}": {"cluster": SPARSE},
    "cluster=5": {"cluster": 5},
    "ps_strategy=3": {"ps_tasks": 2, "ps_strategy": 3},
    "worker_device=/job:worker/task:2": {"ps_tasks": 2, "worker_device": "/job:worker/task:2"},
    "worker_device=/job:worker/task:2/gpu:0": {"ps_tasks": 2, "worker_device": "/job:worker/task:2/gpu:0"},
    "ps_device=/job:ps/cpu:0,worker gpu:1": {
        "ps_tasks": 2,
        "ps_device": "/job:ps/cpu:0",
        "worker_device": "/job:worker/task:0/gpu:1",
    },
    "ps_device=/job:ps/task:1 (task overridden?)": {"ps_tasks": 3, "ps_device": "/job:ps/task:1"},
    "ps_device=/cpu:0 (no job)": {"ps_tasks": 2, "ps_device": "/cpu:0"},
    "ps_device='' ps_tasks=2": {"ps_tasks": 2, "ps_device": ""},
    "ps_device='' cluster": {"cluster": CLUSTER, "ps_device": ""},
    "worker_device=''": {"ps_tasks": 2, "worker_device": ""},
    "worker_device=None": {"ps_tasks": 2, "worker_device": None},
    "ps_ops=['Const']": {"ps_tasks": 2, "ps_ops": ["Const"]},
    "ps_ops=[]": {"ps_tasks": 2, "ps_ops": []},
    "ps_device=/job:pserver cluster pserver": {
        "cluster": {"pserver": ["h1:1", "h2:1"], "worker": ["h3:1"]},
        "ps_device": "/job:pserver",
    },
}
INNER = re.compile(r"merge=(?P<merge>[TF]) inner (?P<inner>None|'.*')")

# Where we differ on purpose: our answer, and why.
DIFFERENCES = {
    "cluster sparse ps {0:..,3:..}": (
        "v0='/job:ps/task:0'; v1='/job:ps/task:3'; v2='/job:ps/task:0'; const='/job:worker'",
        "TensorFlow counts the tasks (2) and uses 0 and 1; task 1 doesn't exist. We use the tasks there are.",
    ),
}


@pytest.fixture(autouse=True)
def task_leaks_are_not_the_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_scope._leak, "warned", True)


def cases() -> list[Any]:
    found = json.loads(GOLDEN.read_text())["replica_device_setter"]
    return [pytest.param(name, expected, id=name) for name, expected in found]


def variable(name: str, shape: Any = (), dtype: Any = dtypes.float32) -> Operation:
    return state_ops.variable_op(shape, dtype, name).op


def handle(name: str, shape: Any = (), dtype: Any = dtypes.float32) -> Operation:
    op: Operation = apply_op("VarHandleOp", dtype=dtype, shape=shape, name=name).op
    return op


@contextmanager
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


def placements(name: str) -> str:
    """What the operations of a golden case ask for, in the golden file's words."""
    make = handle if "resource" in name else variable
    case = INNER.fullmatch(name)
    with graph() as g:
        made: dict[str, Operation] = {}
        if case is None:
            with g.device(replica_device_setter(**SETTERS[name])):
                for i in range(3):
                    made[f"v{i}"] = make(f"v{i}")
                made["const"] = constant(1).op
        else:
            options = {"ps_tasks": 2, "ps_device": "/job:ps/cpu:0", "worker_device": "/job:worker/task:0/gpu:0"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                setter = replica_device_setter(merge_devices=case["merge"] == "T", **options)  # type: ignore[arg-type]
            with g.device(setter):
                with g.device(None if case["inner"] == "None" else case["inner"][1:-1]):
                    made["v0"], made["v1"], made["const"] = make("v0"), make("v1"), constant(1).op
                made["after_v"] = make("after_v")
        return "; ".join(f"{key}='{op.device}'" for key, op in made.items())


@pytest.mark.parametrize(("name", "expected"), cases())
def test_the_setter_answers_as_tensorflow_did(name: str, expected: str) -> None:
    if expected.startswith("TypeError"):
        with pytest.raises(TypeError):
            placements(name)
        return
    assert placements(name) == DIFFERENCES.get(name, (expected,))[0]


def test_differences_from_tensorflow_are_only_the_explained_ones() -> None:
    golden = dict(json.loads(GOLDEN.read_text())["replica_device_setter"])
    assert all(golden[name] != ours for name, (ours, _) in DIFFERENCES.items())
    assert set(SETTERS) == {name for name in golden if not INNER.fullmatch(name)}


def test_a_setter_with_nothing_to_do_keeps_the_outer_device() -> None:
    # TensorFlow returns None here, and ``device(None)`` forgets the outer blocks.
    with graph() as g, g.device("/job:worker/task:1"), g.device(replica_device_setter(ps_tasks=0)), g.device("/cpu:0"):
        assert variable("v").device == "/job:worker/task:1/device:CPU:0"


@pytest.mark.parametrize(
    ("options", "worker"),
    [
        ({"ps_tasks": 2}, "/job:worker"),
        ({"cluster": {"ps": 2, "worker": 2}}, "/job:worker"),
        ({"ps_tasks": 2, "worker_device": "/job:worker/task:1/cpu:0"}, "/job:worker/task:1/device:CPU:0"),
    ],
)
def test_five_variables_go_to_two_servers_in_turn_and_computation_to_the_worker(options: dict[str, Any], worker: str) -> None:
    with graph() as g, g.device(replica_device_setter(**options)):
        variables = [state_ops.variable_op((), dtypes.float32, f"v{i}") for i in range(1, 6)]
        s = apply_op("AddV2", variables[0], variables[1])
        with g.device("/gpu:1"):
            p1 = apply_op("Mul", 2.0, s)
            with g.device("/task:1"):
                p2 = apply_op("Mul", 3.0, s)
    assert [v.device for v in variables] == [f"/job:ps/task:{i}" for i in (0, 1, 0, 1, 0)]
    assert s.device == worker
    on_worker = worker.split("/device")[0]
    assert p1.device == f"{on_worker}/device:GPU:1"
    assert p2.device == "/job:worker/task:1/device:GPU:1"


def test_a_setter_used_twice_goes_on_counting_and_a_new_one_starts_again() -> None:
    def make() -> Callable[[Operation], str]:
        return replica_device_setter(ps_tasks=3)

    with graph() as g:
        setter = make()
        with g.device(setter):
            first = variable("a").device
        with g.device(setter):
            second = variable("b").device
        with g.device(make()):
            fresh = variable("c").device
    assert [first, second, fresh] == ["/job:ps/task:0", "/job:ps/task:1", "/job:ps/task:0"]


def test_a_task_pinned_inside_still_uses_up_a_turn() -> None:
    with graph() as g, g.device(replica_device_setter(ps_tasks=3)):
        with g.device("/task:2"):
            pinned = variable("a").device
        assert [pinned, variable("b").device] == ["/job:ps/task:2", "/job:ps/task:1"]


def test_an_inner_block_of_another_job_uses_up_no_turn() -> None:
    with graph() as g, g.device(replica_device_setter(ps_tasks=3)):
        with g.device("/job:other/task:0"):
            elsewhere = variable("a").device
        assert [elsewhere, variable("b").device] == ["/job:other/task:0", "/job:ps/task:0"]


def test_blocks_outside_the_setter_fill_what_it_leaves_open() -> None:
    with graph() as g, g.device("/gpu:3"), g.device(replica_device_setter(ps_tasks=2)):
        assert variable("v").device == "/job:ps/task:0/device:GPU:3"
        assert constant(1).device == "/job:worker/device:GPU:3"


def test_local_variables_stay_with_the_worker_and_use_up_no_turn() -> None:
    def local() -> Variable:
        return Variable(1.0, name="local", trainable=False, collections=[GraphKeys.LOCAL_VARIABLES])

    with graph() as g, g.device(replica_device_setter(ps_tasks=2)):
        assert [local().device, Variable(1.0).device] == ["/job:worker", "/job:ps/task:0"]
    with graph() as g, g.device(replica_device_setter(ps_tasks=2, ps_ops=["VariableV2"])):
        assert local().device == "/job:ps/task:0"  # asked for by name


def test_unmerged_devices_are_announced_as_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match=r"merge_devices=False\) is deprecated"):
        replica_device_setter(ps_tasks=1, merge_devices=False)


def test_a_strategys_wrong_answer_is_refused_with_the_values() -> None:
    with (
        graph() as g,
        g.device(replica_device_setter(ps_tasks=2, ps_strategy=lambda op: 2)),
        pytest.raises(ValueError) as error,
    ):
        variable("w")
    assert str(error.value) == "ps_strategy chose 2 for 'w', but job 'ps' has 2 task(s): answers are 0 to 1."


SIZES = [100, 10, 10, 50, 30, 1, 200]


@pytest.mark.parametrize("make", [variable, handle], ids=["reference", "resource"])
@pytest.mark.parametrize(
    ("load", "tasks"), [(byte_size_load_fn, [0, 1, 2, 1, 2, 2, 2]), (lambda op: 1, [0, 1, 2, 0, 1, 2, 0])], ids=["bytes", "one"]
)
def test_greedy_balancing_takes_the_least_loaded_task(make: Any, load: Any, tasks: list[int]) -> None:
    # Sizes and answers as run in TensorFlow.
    setter = replica_device_setter(ps_tasks=3, ps_strategy=GreedyLoadBalancingStrategy(3, load))
    with graph() as g, g.device(setter):
        devices = [make(f"v{i}", (n,)).device for i, n in enumerate(SIZES)]
    assert devices == [f"/job:ps/task:{t}" for t in tasks]


def test_greedy_balancing_over_a_job_with_gaps_uses_the_tasks_there_are() -> None:
    setter = replica_device_setter(cluster=SPARSE, ps_strategy=GreedyLoadBalancingStrategy(2, byte_size_load_fn))
    with graph() as g, g.device(setter):
        assert [variable(f"v{i}", (n,)).device[-1] for i, n in enumerate([4, 1, 1, 5])] == ["0", "3", "3", "3"]


@pytest.mark.parametrize("make", [variable, handle], ids=["reference", "resource"])
def test_byte_size_is_elements_times_size_of_the_type(make: Any) -> None:
    with graph():
        assert byte_size_load_fn(make("a", (3, 5), dtypes.float64)) == 120
        assert byte_size_load_fn(make("b", (), dtypes.int32)) == 4


def test_byte_size_of_what_is_no_variable_or_has_no_known_shape_is_refused() -> None:
    with graph():
        with pytest.raises(ValueError, match=r"^byte_size_load_fn: the shape of 'v' is not fully known: \(\?, 2\)\.$"):
            byte_size_load_fn(variable("v", (None, 2)))
        split = apply_op("AddV2", constant(1.0), constant(2.0)).op
        split.outputs = ()
        with pytest.raises(ValueError, match=r"^byte_size_load_fn: 'AddV2' \(AddV2\) has 0 outputs; a variable has one\.$"):
            byte_size_load_fn(split)


def test_the_name_hash_strategy_does_not_depend_on_the_order_of_creation() -> None:
    def tasks(names: list[str]) -> dict[str, str]:
        with graph() as g, g.device(replica_device_setter(ps_tasks=3, ps_strategy=NameHashStrategy(3))):
            return {name: variable(name).device for name in names}

    names = [f"layer_{i}/w" for i in range(20)]
    there, back = tasks(names), tasks(names[::-1])
    assert there == back
    assert len(set(there.values())) == 3
