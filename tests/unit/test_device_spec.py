"""Device strings: against TensorFlow's recorded answers, and by the laws of merging."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt.cluster.device_spec import DeviceSpec, leaks_task, merge, parse

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tf_device_golden.json").read_text())

# Where we decide otherwise than TensorFlow's graph-building parser: input -> (our canonical form or None = refused, why).
DIFFERENCES: dict[str, tuple[str | None, str]] = {
    "/device:Gpu:3": ("/device:GPU:3", "upper case, as the legacy form does; 'Gpu' would match nothing later"),
    "/device:custom:0": ("/device:CUSTOM:0", "upper case"),
    "/device:CPU": ("/device:CPU:*", "any index, as '/cpu'; TensorFlow's run-time parser takes it"),
    "/task:*": ("", "any task, as in TensorFlow's run-time parser"),
    "/job:*": ("", "any job, as in TensorFlow's run-time parser"),
    "/job:ps/device:*:*": ("/job:ps", "any device"),
    "/job:": (None, "empty name"),
    "/job: ps": (None, "a blank in a name"),
    "/cpu:0 ": (None, "a blank in a number"),
    "/task:-1": (None, "negative"),
    "/cpu:-1": (None, "negative"),
    "/job:ps/job:worker": (None, "repeated field; TensorFlow lets the last one win silently"),
    "/device::0": (None, "empty name"),
    "/device:*:0": (None, "an index without a type could not be printed, so it would be lost inside scopes"),
}


@pytest.mark.parametrize(("text", "answer"), [(ast.literal_eval(text), answer) for text, answer in GOLDEN["parse"]])
def test_parse_agrees_with_tensorflow_except_for_the_listed_decisions(text: str, answer: str) -> None:
    if text in DIFFERENCES:
        ours = DIFFERENCES[text][0]
        if ours is None:
            with pytest.raises(ValueError, match="device "):
                parse(text)
        else:
            assert str(parse(text)) == ours
            assert answer.split("   ")[0] != repr(ours), "no longer a difference: take it off the list"
    elif answer.startswith("ValueError"):
        with pytest.raises(ValueError, match="device "):
            parse(text)
    else:
        canonical, fields = answer.split("   ")
        assert str(parse(text)) == ast.literal_eval(canonical)
        assert parse(text) == DeviceSpec(*ast.literal_eval(fields))


def test_every_listed_difference_is_a_golden_case() -> None:
    assert DIFFERENCES.keys() <= {ast.literal_eval(text) for text, _ in GOLDEN["parse"]}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("/job:ps/replica:*/task:1/device:CPU:*", "/job:ps/task:1/device:CPU:*"),
        ("/device:xla_gpu:2", "/device:XLA_GPU:2"),
        ("/device:foo", "/device:FOO:*"),
        ("/Custom:1", "/device:CUSTOM:1"),
        ("/device:*", ""),
        ("task:0/job:a", "/job:a/task:0"),
    ],
)
def test_forms_of_the_runtime_parser_are_accepted_too(text: str, canonical: str) -> None:
    assert DeviceSpec.from_string(text).to_string() == canonical


def test_refusal_says_what_the_piece_and_the_accepted_forms() -> None:
    with pytest.raises(ValueError) as caught:
        parse("/job:ps/foo:1")
    assert str(caught.value) == (
        "device '/job:ps/foo:1': can't read the piece '/foo:1'. Accepted pieces, each at most once, in any order: "
        "/job:NAME (a letter, then letters, digits, '_', '.', '-'), /replica:N, /task:N, /device:TYPE:N, and for known types "
        "/cpu:N, /gpu:N, /tpu:N, /epu:N, /custom:N; '*' or no number means any; for example '/job:ps/task:0/device:CPU:0'."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/cpu:0/gpu:1", "the piece '/gpu:1' says the device a second time"),
        ("/device:*/cpu:0", "the piece '/cpu:0' says the device a second time"),
        ("/task:1/job:a/task:1", "the piece '/task:1' says the task a second time"),
        ("/replica:0/replica:*", "the piece '/replica:*' says the replica a second time"),
        ("/device:*:0", "the piece '/device:*:0' gives an index without a device type"),
        ("/job:1ps", "can't read the piece '/job:1ps'"),
        ("/job:ps\n", r"can't read the piece '/job:ps\n'"),
        ("/task:٣", "can't read the piece '/task:٣'"),
        ("/device:CPU:0:1", "can't read the piece '/device:CPU:0:1'"),
        ("/DEVICE:CPU:0", "can't read the piece '/DEVICE:CPU:0'"),
        ("/device:a-b:0", "can't read the piece '/device:a-b:0'"),
    ],
)
def test_refused_strings_name_the_offending_piece(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"device {text!r}: {reason}. Accepted pieces")):
        parse(text)


def test_parse_of_something_else_than_a_string_is_a_type_error() -> None:
    wrong: Any = 5
    with pytest.raises(TypeError, match="a device must be a string, not 5"):
        parse(wrong)


def test_none_and_the_empty_string_name_nothing() -> None:
    assert DeviceSpec.from_string(None) == DeviceSpec.from_string("") == DeviceSpec()
    assert str(DeviceSpec()) == ""


def test_an_index_without_a_type_is_kept_but_not_printed() -> None:
    spec = DeviceSpec(job="ps", device_index=1)
    assert (str(spec), spec.device_index) == ("/job:ps", 1)


def test_replace_and_parse_from_string_leave_the_spec_alone() -> None:
    spec = DeviceSpec("ps", None, 1, "gpu", 0)
    assert str(spec.replace(task=2, device_type="cpu")) == "/job:ps/task:2/device:CPU:0"
    assert str(spec.replace(task=None)) == "/job:ps/device:GPU:0"
    assert spec.parse_from_string("/task:7") == DeviceSpec(task=7)
    assert str(spec) == "/job:ps/task:1/device:GPU:0"
    with pytest.raises(AttributeError):
        spec.task = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"task": -1}, ValueError, "DeviceSpec: task=-1 is negative."),
        ({"replica": "x"}, TypeError, "DeviceSpec: replica must be an integer, not 'x'."),
        ({"device_index": 1.5}, TypeError, "DeviceSpec: device_index must be an integer, not 1.5."),
        ({"job": ""}, ValueError, "DeviceSpec: job='' is not a name that matches [A-Za-z][A-Za-z0-9_.-]*."),
        ({"job": 3}, TypeError, "DeviceSpec: job must be a string, not 3."),
        ({"device_type": "G:"}, ValueError, "DeviceSpec: device_type='G:' is not a name that matches [A-Za-z_][A-Za-z0-9_]*."),
    ],
)
def test_constructor_refuses_what_the_parser_refuses(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        DeviceSpec(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(("outer", "inner", "merged"), [
    (*map(ast.literal_eval, case.split(" > ")), ast.literal_eval(answer))
    for case, answer in GOLDEN["scopes"]
    if re.fullmatch(r"'[^']*' > '[^']*'", case) and "*" not in case
])  # fmt: skip
def test_merge_agrees_with_two_nested_scopes_of_tensorflow(outer: str, inner: str, merged: str) -> None:
    assert merge(outer, inner) == merged


def test_a_star_leaves_the_field_to_the_outer_spec() -> None:
    assert merge("/job:ps/task:1", "/job:*") == "/job:ps/task:1"
    assert merge("/gpu:1", "/cpu:*") == "/device:CPU:1"
    assert merge("/gpu:1", "/device:*:*") == "/device:GPU:1"


@pytest.mark.parametrize(
    ("outer", "inner", "leaks"),
    [
        ("/job:ps/task:1", "/job:worker", True),
        ("/job:ps/task:0/cpu:0", "/job:worker/gpu:0", True),
        ("/job:ps/task:1", "/job:ps", False),
        ("/job:ps/task:1", "/job:worker/task:0", False),
        ("/job:ps", "/job:worker", False),
        ("/task:1", "/job:worker", False),
        ("/job:ps/task:1", "/cpu:0", False),
    ],
)
def test_a_task_leaks_when_only_the_job_is_replaced(outer: str, inner: str, leaks: bool) -> None:
    assert leaks_task(outer, inner) is leaks


names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,5}", fullmatch=True)
counts = st.none() | st.integers(0, 10**6)
specs = st.builds(
    DeviceSpec, st.none() | names, counts, counts, st.none() | st.sampled_from(["CPU", "gpu", "Foo_1"]), counts
)
strings = specs.map(str)


@given(specs, specs, specs)
def test_merge_is_associative(a: DeviceSpec, b: DeviceSpec, c: DeviceSpec) -> None:
    assert a.make_merged_spec(b).make_merged_spec(c) == a.make_merged_spec(b.make_merged_spec(c))


@given(specs)
def test_merge_has_the_empty_spec_as_identity_and_is_idempotent(a: DeviceSpec) -> None:
    assert a.make_merged_spec(DeviceSpec()) == DeviceSpec().make_merged_spec(a) == a.make_merged_spec(a) == a


@given(specs, specs)
def test_merge_takes_each_field_from_the_inner_spec_if_set(outer: DeviceSpec, inner: DeviceSpec) -> None:
    merged = outer.make_merged_spec(inner)
    for field in ("job", "replica", "task", "device_type", "device_index"):
        said = [value for value in (getattr(inner, field), getattr(outer, field)) if value is not None]
        assert getattr(merged, field) == (said[0] if said else None)


@given(strings, strings, strings)
def test_merge_of_strings_is_associative_for_printing_loses_nothing(a: str, b: str, c: str) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(strings)
def test_printing_a_parsed_string_is_a_fixed_point(text: str) -> None:
    assert str(parse(text)) == text
    assert merge("", text) == merge(text, "") == text


@given(st.text(alphabet="/:*jobtaskcpudevice-0123 ", max_size=24))
def test_any_text_either_parses_to_a_fixed_point_or_is_a_value_error(text: str) -> None:
    try:
        printed = str(parse(text))
    except ValueError:
        return
    assert str(parse(printed)) == printed
