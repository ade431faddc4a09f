"""mpirt against TensorFlow's answers: graphs that TensorFlow exported, its op definitions, its signatures.

The files in tests/golden/tf/ are written by tests/golden/make_tf_golden.py, which says what is in them. TensorFlow is not
needed here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.graph_pb2 import GraphDef

import mpirt
from mpirt.graph import op_def
from tests.golden import (  # noqa: F401  (they register their cases)
    tf_cases_array,
    tf_cases_data_flow,
    tf_cases_functional,
    tf_cases_math,
    tf_cases_nn,
    tf_cases_sparse,
)
from tests.golden.tf_case import CASES, build

GOLDEN = Path(__file__).parents[1] / "golden" / "tf"

# Op types that only cases outside of what mpirt promises so far need; a case that has one of them is skipped, by name.
BEYOND: dict[str, str] = {
    "Polygamma": "gradient of digamma",
    "RefSwitch": "control flow",
    "Switch": "control flow",
    "Merge": "control flow",
    "DenseBincount": "bincount",
    "EuclideanNorm": "reduce_euclidean_norm",
    "Case": "switch_case is a chain of conds; the calls are compared",
    "StatelessCase": "switch_case is a chain of conds; the calls are compared",
    "OptionalFromValue": "TensorFlow's gradient of cond; the calls are compared",
    "EmptyTensorList": "TensorFlow's gradient of while_loop; the calls are compared",
}

# Public names that cases use and mpirt doesn't have yet: the case is then checked by import alone.
WITHOUT_NAMES: dict[str, str] = {}


@cache
def load(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def cases() -> dict[str, Any]:
    found: dict[str, Any] = load("cases.json")["cases"]
    return found


class Answers:
    """The recorded values of one case."""

    def __init__(self, name: str) -> None:
        self.entry = cases()[name]
        self.names = list(self.entry["shapes"])
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.graph_def = GraphDef.FromString(self.arrays["graph_def"].tobytes())

    def name(self, tensor: int | str) -> str:
        return tensor if isinstance(tensor, str) else self.names[tensor]

    def value(self, tensor: int | str, place: list[Any]) -> np.ndarray[Any, Any]:
        array, start, *shape = place
        dims = shape[0] if shape else self.entry["shapes"][self.name(tensor)][1]
        return self.arrays[array][start : start + int(np.prod(dims, dtype=int))].reshape(dims)

    def feeds(self, step: dict[str, Any]) -> dict[str, Any]:
        return {name: self.value(name, place) for name, place in step.get("feeds", self.entry["feeds"]).items()}

    def expected(self, step: dict[str, Any]) -> list[tuple[str, np.ndarray[Any, Any]]]:
        return [(self.name(t), self.value(t, place)) for t, place in step["fetch"]]


# float32 sums of a few dozen terms in another order, and other approximations of erf or lgamma, differ by this much.
TOLERANCE = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-11, "complex64": 1e-5, "complex128": 1e-11}


def difference(actual: Any, expected: np.ndarray[Any, Any], scale: float) -> str:
    """Empty when they agree, else how they differ. Type and shape must be the same."""
    actual = np.asarray(actual)
    if expected.dtype.kind == "S":
        if actual.dtype.kind != "O" and actual.dtype.kind != "S":
            return f"{actual.dtype}, not bytes"
        actual = np.array(actual.reshape(-1).tolist() or [], expected.dtype if actual.size == 0 else None).reshape(actual.shape)
        same = actual.shape == expected.shape and bool(np.all(actual == expected))
        return "" if same else f"{actual!r}, TensorFlow has {expected!r}"
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return f"{actual.dtype}{list(actual.shape)}, TensorFlow has {expected.dtype}{list(expected.shape)}"
    if expected.dtype.name not in TOLERANCE:
        good = bool(np.array_equal(actual, expected))
    else:
        tolerance = TOLERANCE[expected.dtype.name] * scale
        finite = np.abs(expected[np.isfinite(expected)])
        largest = float(min(max(finite.max(initial=0), 1e-30), 1.0))
        with np.errstate(all="ignore"):
            good = bool(np.allclose(actual, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True))
    return "" if good else f"\n{actual!r}, TensorFlow has\n{expected!r}"


def run_step(session: Any, graph: Any, answers: Answers, step: dict[str, Any]) -> str:
    """One ``session.run`` of a case; empty or what is wrong with it, the first tensor first."""
    feeds = answers.feeds(step)
    names = [answers.name(t) for t, _ in step["fetch"]]
    targets = [graph.get_operation_by_name(t) for t in step.get("targets", ())]
    if "error" in step:
        with pytest.raises(getattr(mpirt.errors, step["error"])):
            session.run([*targets, *names], feeds)
        return ""
    try:
        actual = session.run([*targets, *names], feeds)[len(targets) :]
    except mpirt.errors.OpError:
        if not step.get("inspect"):
            raise
        for name in names:  # name the first that fails
            try:
                session.run(name, feeds)
            except mpirt.errors.OpError as error:
                op = graph.get_tensor_by_name(name).op
                return f"{name} ({op.type}) raises {type(error).__name__}: {error}"
        raise
    wrong = []
    for (name, expected), value in zip(answers.expected(step), actual, strict=True):
        tensor = graph.get_tensor_by_name(name)
        text = difference(value, expected, answers.entry.get("scale", 1.0))
        if not text and not fits(np.shape(value), static_shape(tensor)):
            text = f"has the value shape {np.shape(value)} but the static shape {tensor.shape}"
        if text:
            wrong.append(f"{name} ({tensor.op.type} of {[t.name for t in tensor.op.inputs]}): {text}")
    return f"{len(wrong)} of {len(names)} tensors differ, first {wrong[0]}" if wrong else ""


def static_shape(tensor: Any) -> list[int | None] | None:
    return None if tensor.shape.ndims is None else [None if d is None else int(d) for d in tensor.shape.as_list()]


def fits(shape: Any, static: list[int | None] | None) -> bool:
    return static is None or (len(shape) == len(static) and all(s in (None, d) for d, s in zip(shape, static, strict=True)))


def imported(answers: Answers) -> Any:
    """The case's graph imported into a fresh mpirt graph; fails or skips naming op types that aren't registered."""
    nodes = [*answers.graph_def.node, *(node for f in answers.graph_def.library.function for node in f.node_def)]
    missing = sorted({node.op for node in nodes} - set(op_def.op_types()))
    if any(op_type in BEYOND for op_type in missing):
        pytest.skip(", ".join(f"{op_type}: {BEYOND[op_type]}" for op_type in missing if op_type in BEYOND))
    assert not missing, f"op types that mpirt doesn't register: {missing}"
    graph = mpirt.Graph()
    with graph.as_default():
        mpirt.import_graph_def(answers.graph_def, name="")
    return graph


@pytest.mark.parametrize("name", sorted(cases()))
def test_imported_graph_gives_tensorflows_answers(name: str) -> None:
    answers = Answers(name)
    graph = imported(answers)
    with mpirt.Session(graph=graph) as session:
        for number, step in enumerate(answers.entry["steps"]):
            wrong = run_step(session, graph, answers, step)
            assert not wrong, f"{name}, step {number}: {wrong}"


@pytest.mark.parametrize("name", sorted(cases()))
def test_imported_graph_has_tensorflows_static_shapes_or_better_ones(name: str) -> None:
    answers = Answers(name)
    graph = imported(answers)
    wrong = []
    for tensor_name, (dtype, expected) in answers.entry["shapes"].items():
        tensor = graph.get_tensor_by_name(tensor_name)
        ours = static_shape(tensor)
        if tensor.dtype.name != dtype:
            wrong.append(f"{tensor_name} ({tensor.op.type}) is {tensor.dtype.name}, TensorFlow has {dtype}")
        if expected is not None and (
            ours is None
            or len(ours) != len(expected)
            or any(e is not None and o != e for o, e in zip(ours, expected, strict=True))
        ):
            wrong.append(f"{tensor_name} ({tensor.op.type}) has shape {ours}, TensorFlow has {expected}")
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("name", sorted(cases()))
def test_export_after_import_is_the_same_graph(name: str) -> None:
    answers = Answers(name)
    again = {node.name: node for node in imported(answers).as_graph_def().node}
    assert set(again) == {node.name for node in answers.graph_def.node}
    for node in answers.graph_def.node:
        ours = again[node.name]
        assert (ours.op, list(ours.input), ours.device) == (node.op, list(node.input), node.device), node.name
        for key in node.attr:
            if key != "value" and not key.startswith("_"):
                assert ours.attr[key] == node.attr[key], f"{node.name} ({node.op}): {key}"


# --- the same cases, built with mpirt's own functions ---------------------------------------------------------------


class MissingName(Exception):
    pass


class Front:
    """``mpirt`` as a case sees it: a name that isn't there is reported as such."""

    def __init__(self, module: Any, prefix: str = "") -> None:
        self._module, self._prefix = module, prefix

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._module, name):
            if self._prefix:
                raise MissingName(self._prefix + name)
            # Cases ask hasattr/getattr with a default for names that live in tf or in tf.nn.
            raise AttributeError(name)
        value = getattr(self._module, name)
        return Front(value, f"{self._prefix}{name}.") if inspect.ismodule(value) else value


@pytest.mark.parametrize("name", sorted(n for n, entry in cases().items() if not entry.get("raw")))
def test_the_same_calls_give_tensorflows_answers(name: str) -> None:
    answers = Answers(name)
    try:
        graph, _, runs = build(Front(mpirt), CASES[name])
    except (AttributeError, MissingName) as error:
        missing = str(error)
        if missing in WITHOUT_NAMES:
            pytest.skip(f"mpirt has no {missing}: {WITHOUT_NAMES[missing]}")
        raise
    steps = [step for step in answers.entry["steps"] if not step.get("inspect")]
    with mpirt.Session(graph=graph) as session:
        for number, (run, step) in enumerate(zip(runs, steps, strict=True)):
            if run.error:
                with pytest.raises(getattr(mpirt.errors, run.error)):
                    session.run([*run.targets, *run.fetch], run.feeds)
                continue
            actual = session.run([*run.targets, *run.fetch], run.feeds)[len(run.targets) :]
            for k, ((theirs, expected), value) in enumerate(zip(answers.expected(step), actual, strict=True)):
                wrong = difference(value, expected, answers.entry.get("scale", 1.0))
                assert not wrong, f"{name}, step {number}, fetch {k}: {run.fetch[k]} ({theirs} in TensorFlow): {wrong}"


def test_every_case_has_its_answer() -> None:
    assert set(CASES) == set(cases()), "run tests/golden/make_tf_golden.py again"
    assert {path.stem for path in GOLDEN.glob("*.npz")} == set(cases())


def test_variables_in_slices_have_tensorflows_names_shapes_and_devices() -> None:
    types = {"VariableV2", "Assign", "Identity", "ConcatV2", "GatherV2", "DynamicPartition", "ParallelDynamicStitch"}
    theirs = mpirt.Graph()
    with theirs.as_default():
        mpirt.import_graph_def(Answers("partitioned_variables").graph_def, name="")
    ours, _, _ = build(mpirt, CASES["partitioned_variables"])

    def described(graph: Any) -> dict[str, Any]:
        ops = [op for op in graph.get_operations() if op.type in types]
        return {op.name: (op.type, op.device, [static_shape(t) for t in op.outputs]) for op in ops}

    expected = described(theirs)
    assert len(expected) > 30
    assert described(ours) == expected


# --- op definitions --------------------------------------------------------------------------------------------------


def _arg(ours: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"name": ours.name}
    if ours.dtype is not None:
        out["type"] = ours.dtype.name
    if ours.type_attr:
        out["type_attr"] = ours.type_attr
    if ours.number_attr:
        out["number_attr"] = ours.number_attr
    if ours.list_attr:
        out["type_list_attr"] = ours.list_attr
    if ours.is_ref:
        out["is_ref"] = True
    return out


def _default(value: Any) -> Any:
    if isinstance(value, mpirt.DType):
        return value.name
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_default(v) for v in value]
    return value


# Defaults that differ for a stated reason: (op type, attribute) -> reason.
OTHER_DEFAULTS: dict[tuple[str, str], str] = {}


@pytest.mark.parametrize("op_type", sorted(set(op_def.op_types()) & set(load("ops.json"))))
def test_op_type_has_tensorflows_arguments_and_attributes(op_type: str) -> None:
    ours, theirs = op_def.op_def(op_type), load("ops.json")[op_type]
    assert [_arg(a) for a in ours.inputs] == theirs["inputs"]
    assert [_arg(a) for a in ours.outputs] == theirs["outputs"]
    for attr in theirs["attrs"]:
        assert attr["name"] in ours.attrs, f"{op_type} lacks the attribute {attr['name']} ({attr['type']})"
        mine = ours.attrs[attr["name"]]
        assert mine.kind == attr["type"], attr["name"]
        if "default" not in attr:
            assert mine.default is op_def.REQUIRED, f"{op_type}.{attr['name']} has no default in TensorFlow"
        elif (op_type, attr["name"]) not in OTHER_DEFAULTS:
            assert mine.default is not op_def.REQUIRED, f"{op_type}.{attr['name']} is optional in TensorFlow"
            if isinstance(attr["default"], float):
                assert mine.default == pytest.approx(attr["default"]), attr["name"]
            else:
                assert _default(mine.default) == attr["default"], attr["name"]
    extra = set(ours.attrs) - {a["name"] for a in theirs["attrs"]}
    assert all(ours.attrs[a].default is not op_def.REQUIRED for a in extra), f"required attributes TensorFlow hasn't: {extra}"


@pytest.mark.parametrize("op_type", sorted(set(op_def.op_types()) & set(load("ops.json"))))
def test_op_type_keeps_state_exactly_when_tensorflows_does(op_type: str) -> None:
    theirs = load("ops.json")[op_type]
    stateless_in_name_only = any(a.get("is_ref") for a in theirs["inputs"])  # TensorFlow marks only the variable itself
    assert op_def.op_def(op_type).stateful in ({True, False} if stateless_in_name_only else {theirs.get("is_stateful", False)})


# --- public names ----------------------------------------------------------------------------------------------------

# Arguments of TensorFlow 2.21's compat.v1 that mpirt leaves out, on any function. TensorFlow 1 scripts don't have them.
NEWER_ARGUMENTS = {
    "skip_gradients_aggregation": "Keras and distribution strategies of TensorFlow 2",
    "use_own_namescope_for_non_slot_vars": "newer than TensorFlow 1",
    "experimental_autocast": "Keras mixed precision",
    "experimental_enable_variable_lifting": "tf.function of TensorFlow 2",
    "bad_indices_policy": "newer than TensorFlow 1",
}
# Functions that scripts don't call, whose arguments are mpirt's own.
OWN_SIGNATURES = {
    "DType": "scripts use the objects (tf.float32) and as_dtype",
    "Graph.create_op": "the ops layer calls it; scripts call functions of operations",
}
# Arguments of one function that mpirt leaves out: (function, argument) -> reason.
LEFT_OUT: dict[tuple[str, str], str] = {}
# Defaults that differ: (function, argument) -> reason.
OTHER_SIGNATURE_DEFAULTS: dict[tuple[str, str], str] = {
    ("train.Server", "server_or_cluster_def"): "the running cluster: ranks know it",
}


def _lookup(dotted: str) -> Any:
    found: Any = mpirt
    for part in dotted.split("."):
        found = getattr(found, part, None)
    return found


def _signatures() -> Iterator[tuple[str, list[dict[str, Any]], Any]]:
    surface = load("surface.json")
    for name, arguments in surface["functions"].items():
        yield name, arguments, _lookup(name)
    for name, described in surface["classes"].items():
        ours = _lookup(name)
        if ours is None:
            continue
        init = described["init"]
        if init and not any(a.get("kind", "").startswith("VAR_") for a in init):
            yield name, init, ours
        for method, arguments in described["methods"].items():
            if not method.startswith("__"):
                yield f"{name}.{method}", arguments, getattr(ours, method, None)


SIGNATURES = {name: (theirs, ours) for name, theirs, ours in _signatures() if ours is not None and theirs is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, mpirt.DType):
        return {"dtype": value.name}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


@pytest.mark.parametrize("name", sorted(SIGNATURES.keys() - OWN_SIGNATURES.keys()))
def test_public_function_takes_tensorflows_arguments(name: str) -> None:
    theirs, ours = SIGNATURES[name]
    # A class by its __init__: a metaclass that chooses the class of a variable hides the arguments.
    parameters = list(inspect.signature(ours.__init__ if inspect.isclass(ours) else ours).parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    wanted = [a for a in theirs if a["name"] not in NEWER_ARGUMENTS and (name, a["name"]) not in LEFT_OUT]
    wanted = [a for a in wanted if a.get("kind") != "VAR_KEYWORD"]
    kept = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    assert [p.name for p in kept[: len(wanted)]] == [a["name"] for a in wanted]
    assert all(p.default is not p.empty or p.kind is p.VAR_POSITIONAL for p in kept[len(wanted) :]), "ours must be optional"
    for mine, argument in zip(kept, wanted, strict=False):
        if (name, mine.name) in OTHER_SIGNATURE_DEFAULTS or argument.get("kind") == "VAR_POSITIONAL":
            continue
        assert (mine.default is not mine.empty) == ("default" in argument), f"{mine.name}: with and without a default"
        default = argument.get("default")
        if "default" in argument and not (isinstance(default, dict) and ("repr" in default or "enum" in default)):
            assert _plain(mine.default) == default, mine.name


def test_error_classes_and_codes_are_tensorflows() -> None:
    surface = load("surface.json")
    for name in surface["errors"]:
        assert issubclass(getattr(mpirt.errors, name), mpirt.errors.OpError), name
    assert {k: getattr(mpirt.errors, k) for k in surface["error_codes"]} == surface["error_codes"]


def test_dtypes_have_tensorflows_numbers() -> None:
    for name, theirs in load("surface.json")["dtypes"].items():
        ours = getattr(mpirt, name, None)
        if isinstance(ours, mpirt.DType):
            assert (ours.name, ours.as_datatype_enum) == (theirs["name"], theirs["enum"])


def test_collections_have_tensorflows_names() -> None:
    theirs = load("surface.json")["graph_keys"]
    ours = {k: getattr(mpirt.GraphKeys, k) for k in dir(mpirt.GraphKeys) if k.isupper() and not k.startswith("_")}
    assert ours == {k: theirs[k] for k in ours}
    assert {"GLOBAL_VARIABLES", "TRAINABLE_VARIABLES", "LOCAL_VARIABLES", "GLOBAL_STEP", "UPDATE_OPS", "LOSSES"} <= set(ours)
