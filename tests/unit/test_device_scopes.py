"""Device blocks: which device an operation asks for, against what TensorFlow answered, and laws that hold for all stacks."""

import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt.cluster import device_spec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.graph import device_scope
from mpirt.graph.graph import Graph, Operation, device
from mpirt.ops.apply import constant

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "tf_device_golden.json").read_text())

_W2 = "<DeviceSpec(job=w, replica=None, task=2, device_type=None, device_index=None)>"  # as a golden case prints it

# Where we differ on purpose: our answer (None: refused with ValueError at the ``with`` line), and why.
SCOPE_DIFFERENCES: dict[str, tuple[str | None, str]] = {
    "'/job:*'": ("", "one parser for both sides: * is 'any', as TensorFlow's run-time parser reads it"),
    "'/job:ps/task:*'": ("/job:ps", "as above; TensorFlow's front end refuses it, its run time takes it"),
    "'/job:ps/task:1' > '/job:*'": ("/job:ps/task:1", "as above: any job, so the outer one holds"),
    "'/device:foo:0'": ("/device:FOO:0", "device types are upper-cased, so that case never decides"),
    "'/task:-1'": (None, "negative numbers are refused"),
    "'/job:ps/gpu:1' > '/device:*:0'": (None, "an index without a type means nothing"),
}
FUNCTION_DIFFERENCES: dict[str, tuple[str | None, str]] = {
    "fn returns garbage string": (None, "TensorFlow stores it and fails in the step; we refuse it where it is made"),
}


@pytest.fixture(autouse=True)
def task_leaks_are_not_the_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_scope._leak, "warned", True)


@pytest.fixture
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


def device_in(g: Graph, blocks: list[Any]) -> str:
    """What an operation asks for inside ``blocks``, outermost first."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(g.device(block))
        return constant(1).device


def parse_stack(text: str) -> list[Any]:
    """The blocks that a golden case spells: ``'/job:ps' > None``."""
    named: dict[str, Any] = {"None": None, _W2: DeviceSpec(job="w", task=2)}
    return [named[part] if part in named else part[1:-1] for part in text.split(" > ")] if text else []


@pytest.mark.parametrize(("text", "expected"), GOLDEN["scopes"], ids=[c[0] or "no block" for c in GOLDEN["scopes"]])
def test_nested_blocks_give_tensorflows_device(graph: Graph, text: str, expected: str) -> None:
    ours: str | None = None if expected.startswith("ValueError") else expected[1:-1]
    ours = SCOPE_DIFFERENCES.get(text, (ours,))[0]
    if ours is None:
        with pytest.raises(ValueError, match="device"):
            device_in(graph, parse_stack(text))
    else:
        assert device_in(graph, parse_stack(text)) == ours


class Functions:
    """The device functions of the golden cases; notes what each of them saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def returning(self, value: Any, name: str = "f") -> Any:
        def function(op: Operation) -> Any:
            self.seen.append((name, op.device))
            return op.device if value == "its own" else value() if callable(value) else value

        return function

    def merging(self, value: str) -> Any:
        def function(op: Operation) -> str:
            self.seen.append(("f", op.device))
            return device_spec.merge(op.device, value)  # the function has the last word

        return function


def divide_by_zero() -> None:
    raise ZeroDivisionError


def function_case(name: str, f: Functions) -> list[Any]:
    """The blocks of a golden case, outermost first."""
    fn = f.returning("/job:fn/task:1")
    cases: dict[str, list[Any]] = {
        "fn->'/job:fn/task:1' alone": [fn],
        "fn inside '/job:ps/cpu:0'": ["/job:ps/cpu:0", fn],
        "'/job:in' inside fn->'/job:fn/task:1'": [fn, "/job:in"],
        "two fns outer=A('/job:a') inner=B('/task:1')": [f.returning("/job:a", "A"), f.returning("/task:1", "B")],
        "outer str '/gpu:1', fn '/job:fn', inner '/task:9'": ["/gpu:1", f.returning("/job:fn"), "/task:9"],
        "outer fn returns op.device ; inner '/job:x'": [f.returning("its own"), "/job:x"],
        "outer fn returns None ; inner '/job:x'": [f.returning(None), "/job:x"],
        "outer '/cpu:0', fn None; inner '/job:x'": ["/cpu:0", f.returning(None), "/job:x"],
        "fn returns ''; inner '/job:x'": [f.returning(""), "/job:x"],
        "fn returns DeviceSpec": [f.returning(DeviceSpec(job="q")), "/cpu:0"],
        "None inside fn": [fn, None],
        "fn returns garbage string": [f.returning("/foo:1")],
        "fn returns int": [f.returning(3)],
        "fn raises": [f.returning(divide_by_zero)],
        "MergeDevice-like wrapper fn inside outer": ["/job:ps/cpu:0", f.merging("/task:1"), "/task:5"],
    }
    return cases[name]


@pytest.mark.parametrize(("name", "expected", "seen"), GOLDEN["functions"], ids=[c[0] for c in GOLDEN["functions"]])
def test_device_functions_see_and_decide_as_in_tensorflow(graph: Graph, name: str, expected: str, seen: str) -> None:
    functions = Functions()
    blocks = function_case(name, functions)
    if expected.startswith("'") and name not in FUNCTION_DIFFERENCES:
        assert device_in(graph, blocks) == expected[1:-1]
    else:
        refusal = {"TypeError": TypeError, "ZeroDivisionError": ZeroDivisionError}.get(expected.split(" ")[0], ValueError)
        with pytest.raises(refusal):
            device_in(graph, blocks)
    names = len({who for who, _ in functions.seen}) > 1
    assert "; ".join(f"{who if names else 'f'} saw {what!r}" for who, what in functions.seen) == seen


def test_differences_from_tensorflow_are_only_the_explained_ones() -> None:
    scopes = {text: expected for text, expected in GOLDEN["scopes"]}
    assert all(scopes[text] != repr(ours) for text, (ours, _) in SCOPE_DIFFERENCES.items())
    assert FUNCTION_DIFFERENCES.keys() <= {c[0] for c in GOLDEN["functions"]}


# ---- laws (notes/tf_semantics 1.9)

numbers = st.none() | st.integers(0, 3)
jobs = st.none() | st.sampled_from(["ps", "worker", "chief"])
kinds = st.none() | st.sampled_from(["CPU", "GPU"])
specs = st.builds(
    lambda job, replica, task, kind, index: DeviceSpec(job, replica, task, kind, index if kind else None),
    jobs,
    numbers,
    numbers,
    kinds,
    numbers,
).map(lambda spec: spec.to_string())


def folded(stack: list[str]) -> str:
    """The merge of all blocks, field by field, written without the code under test."""
    fields: dict[str, str] = {}
    index: dict[str, str] = {}
    for spec in stack:
        for piece in filter(None, spec.split("/")):
            key, _, value = piece.partition(":")
            if key == "device":
                kind, _, number = value.partition(":")
                fields["device"] = kind
                if number != "*":
                    index["device"] = number
            else:
                fields[key] = value
    order = [f"/{k}:{fields[k]}" for k in ("job", "replica", "task") if k in fields]
    return "".join(order) + (f"/device:{fields['device']}:{index.get('device', '*')}" if "device" in fields else "")


@given(st.lists(specs, max_size=5))
def test_blocks_of_strings_are_merged_from_the_outside_in(stack: list[str]) -> None:
    with Graph().as_default() as g:
        assert device_in(g, list(stack)) == folded(stack)


@given(st.lists(specs, max_size=3), st.lists(specs, max_size=3))
def test_none_forgets_everything_outside_it(outer: list[str], inner: list[str]) -> None:
    with Graph().as_default() as g:
        assert device_in(g, [*outer, None, *inner]) == device_in(g, list(inner))


@given(st.lists(specs, max_size=4), st.integers(0, 4))
def test_a_function_that_returns_the_ops_own_device_changes_nothing(stack: list[str], position: int) -> None:
    with Graph().as_default() as g:
        with_function = [*stack[:position], lambda op: op.device, *stack[position:]]
        assert device_in(g, with_function) == device_in(g, list(stack))


@given(st.lists(specs, max_size=3), st.lists(specs, max_size=3), specs)
def test_a_function_replaces_what_is_inside_and_what_is_outside_fills_holes(
    outer: list[str], inner: list[str], answer: str
) -> None:
    with Graph().as_default() as g:
        assert device_in(g, [*outer, lambda op: answer, *inner]) == folded([*outer, answer])


def test_blocks_of_two_threads_on_one_graph_do_not_mix() -> None:
    g = Graph()
    both_open, made = threading.Barrier(2), {}

    def work(name: str) -> None:
        with g.as_default(), g.device(name):
            both_open.wait(10)
            made[name] = [constant(1).device for _ in range(50)]
            both_open.wait(10)

    threads = [threading.Thread(target=work, args=(f"/job:ps/task:{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == {f"/job:ps/task:{i}": [f"/job:ps/task:{i}"] * 50 for i in range(2)}
    with g.as_default():
        assert constant(1).device == ""  # nor is anything open here


# ---- what else blocks promise


def test_a_task_that_leaks_into_another_job_is_announced_once(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_scope._leak, "warned", False)
    with pytest.warns(UserWarning) as caught:
        assert device_in(graph, ["/job:ps/task:1", "/job:worker"]) == "/job:worker/task:1"
    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith(
        "device '/job:worker' inside '/job:ps/task:1' keeps the outer task: operations go to '/job:worker/task:1'"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device_in(graph, ["/job:ps/task:1", "/job:worker"])


@pytest.mark.parametrize(
    "blocks", [["/job:ps/task:1", "/job:worker/task:0"], ["/job:ps", "/job:worker"], ["/task:1", "/job:ps"]]
)
def test_no_warning_where_no_task_leaks(graph: Graph, monkeypatch: pytest.MonkeyPatch, blocks: list[str]) -> None:
    monkeypatch.setattr(device_scope._leak, "warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device_in(graph, list(blocks))


def test_a_malformed_device_is_refused_at_the_with_line(graph: Graph) -> None:
    with pytest.raises(ValueError, match=r"^device '/job:ps/tusk:1': can't read the piece '/tusk:1'"), device("/job:ps/tusk:1"):
        pytest.fail("the block was entered")


def test_what_is_no_device_is_refused_at_the_with_line(graph: Graph) -> None:
    with pytest.raises(TypeError, match="a device is a string, a DeviceSpec, a function or None, not 3"), device(3):
        pytest.fail("the block was entered")


def test_colocation_hides_device_blocks_inside_and_outside_it(graph: Graph) -> None:
    with graph.device("/job:ps/task:1"):
        there = constant(1)
    with graph.device("/job:worker"), graph.colocate_with(there), graph.device("/cpu:0"):
        beside = constant(2)
    assert (beside.device, beside.op.colocated_with()) == ("/job:ps/task:1", [f"loc:@{there.op.name}"[5:]])


def test_a_device_block_decorates_functions(graph: Graph) -> None:
    @graph.device("/job:ps")
    def devices(depth: int) -> list[str]:
        inside = devices(depth - 1) if depth else []
        with graph.device("/task:1"):
            return [*inside, constant(1).device]

    assert devices(2) == ["/job:ps/task:1"] * 3
    assert constant(1).device == ""


def test_a_block_is_checked_again_when_there_is_another_check(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(device: str) -> None:
        raise ValueError(f"no {device}")

    for check in (None, asked.append, asked.append, refuse, None):
        monkeypatch.setattr(device_scope, "_device_check", check)
        if check is refuse:
            with pytest.raises(ValueError, match="no /job:a"):
                device_in(graph, ["/job:a"])
        else:
            assert device_in(graph, ["/job:a", "/task:1"]) == "/job:a/task:1"
    assert set(asked) == {"/job:a", "/job:a/task:1"}
