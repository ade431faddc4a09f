"""The registry of operation types: each has all its facets, and each is run by some test against an independent answer."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.graph_pb2 import GraphDef

import mpirt as tf
from mpirt import dtypes
from mpirt.graph.attributes import signature
from mpirt.graph.graph import Graph, Tensor
from mpirt.graph.op_def import op_def, op_types
from mpirt.ops.apply import apply_op
from tests.evaluate import evaluate
from tests.optimizer_rules import RULES
from tests.reference import Reference

TESTS = Path(__file__).parents[1]


# ---- facets


@pytest.mark.parametrize("op_type", op_types())
def test_an_operation_type_has_a_shape_function_a_cpu_kernel_and_a_gradient_or_a_reason(op_type: str) -> None:
    definition = op_def(op_type)
    assert callable(definition.shape_function)
    assert "CPU" in definition.kernels
    assert (definition.gradient is None) == bool(definition.no_gradient_reason), "a gradient or a reason, not both"
    assert definition.gradient is not None or len(definition.no_gradient_reason.split()) >= 2, "the reason says why"


@pytest.mark.parametrize("op_type", [t for t in op_types() if op_def(t).inputs and not op_def(t).takes_handles])
def test_an_operation_that_is_said_to_take_no_variable_or_resource_refuses_them(op_type: str) -> None:
    definition = op_def(op_type)
    with Graph().as_default():
        handle = Tensor(tf.no_op(), 0, dtypes.resource, ())
    assert not any(arg.is_ref for arg in definition.inputs)
    of_inputs = {arg.type_attr for arg in definition.inputs}
    others = {name: dtypes.float32 for name, attr in definition.attrs.items() if attr.kind == "type" and name not in of_inputs}
    with pytest.raises(TypeError, match="resource"):
        signature(definition, [handle] * len(definition.inputs), others)


@pytest.mark.parametrize("op_type", op_types())
def test_kernels_ask_only_for_attributes_and_arguments_that_the_type_has(op_type: str) -> None:
    definition = op_def(op_type)
    arguments = [a.name for a in (*definition.inputs, *definition.outputs)]
    assert len(set(arguments)) == len(arguments)
    for device, kernel in definition.kernels.items():
        assert device in ("CPU", "GPU")
        assert set(kernel.attrs) <= set(definition.attrs)
        assert set(kernel.host) <= set(arguments)
        assert (kernel.function is None) == bool(kernel.direct)
        if kernel.direct:
            assert callable(getattr(np, kernel.direct))
            assert len(definition.outputs) == 1 and not any(a.is_list for a in (*definition.inputs, *definition.outputs))
        else:
            assert kernel.function is not None
            parameters = inspect.signature(kernel.function, follow_wrapped=False).parameters.values()
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
                if not any(a.is_list for a in definition.inputs):
                    assert len(positional) == 1 + len(definition.inputs), "a context, then the inputs"


@pytest.mark.parametrize("op_type", op_types())
def test_the_attributes_that_arguments_name_exist_and_have_their_kind(op_type: str) -> None:
    definition = op_def(op_type)
    for arg in (*definition.inputs, *definition.outputs):
        for name, kind in ((arg.type_attr, "type"), (arg.list_attr, "list(type)"), (arg.number_attr, "int")):
            assert not name or definition.attrs[name].kind == kind
        assert (arg.dtype is not None) + bool(arg.type_attr) + bool(arg.list_attr) == 1, f"{arg.name}: one source of its type"


# ---- every type is run by a test


@cache
def in_golden_graphs() -> frozenset[str]:
    """Types in the graphs whose values TensorFlow gave (test_tf_golden.py)."""
    golden = TESTS / "golden" / "tf"
    found: set[str] = set()
    for name in json.loads((golden / "cases.json").read_text())["cases"]:
        with np.load(golden / f"{name}.npz") as arrays:
            found |= {node.op for node in GraphDef.FromString(arrays["graph_def"].tobytes()).node}
    return frozenset(found)


@cache
def in_unit_tests() -> frozenset[str]:
    """Types that a unit test names as a string, or makes from the names of update rules (test_training_ops.py)."""
    text = "\n".join(path.read_text() for path in (TESTS / "unit").glob("*.py") if path != Path(__file__))
    named = set(re.findall(r"[\"']([A-Z_][A-Za-z0-9]+)[\"']", text))
    rules = {f"{form}Apply{name}" for name, *_ in RULES.values() for form in ("", "Resource", "Sparse", "ResourceSparse")}
    return frozenset(named | rules)


def test_every_operation_type_is_run_by_a_test() -> None:
    unseen = set(op_types()) - in_golden_graphs() - in_unit_tests() - set(ANSWERS)
    assert sorted(unseen) == sorted(ELSEWHERE), "write a test, or add what you need to ANSWERS below"


# Tested by other means: where.
ELSEWHERE = {
    "PlaceholderV2": "test_old_placeholders_are_fed, below",
}

M = np.arange(12.0).reshape(3, 4) - 5
SQUARE = np.arange(18.0).reshape(2, 3, 3) + 1
BITS = (np.array([12, 255, 0, 7], np.uint8), np.array([10, 1, 255, 2], np.uint8))
COMPLEX = np.array([[1 + 2j, -3j], [-4 + 0j, 5 - 1j]], np.complex64)
ZETA_2 = math.pi**2 / 6
P = np.array([0.01, 0.3, 0.5, 0.975])


def logsumexp_scan(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([np.log(np.exp(x[:, : i + 1]).sum(1)) for i in range(x.shape[1])], 1)


def raw(op_type: str, **attrs: Any) -> Callable[..., Any]:
    return lambda *inputs: apply_op(op_type, *inputs, **attrs)


def int32(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values if len(values) != 1 else values[0], np.int32)


# type -> how to build it, its inputs, its value in numpy or in closed form
ANSWERS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
    "AccumulateNV2": (lambda *xs: apply_op("AccumulateNV2", list(xs), shape=(3, 4)), (M, 2 * M, -M), 2 * M),
    "Angle": (raw("Angle"), (COMPLEX,), np.angle(COMPLEX)),
    "BatchMatMulV3": (raw("BatchMatMulV3", Tout=tf.float64), (SQUARE, SQUARE), SQUARE @ SQUARE),
    "Bincount": (lambda a, s: apply_op("Bincount", a, s, tf.constant([], tf.int32)), (int32(1, 3, 1, 9), int32(5)), int32(0, 2, 0, 1, 0)),
    "BitwiseAnd": (raw("BitwiseAnd"), BITS, BITS[0] & BITS[1]),
    "BitwiseOr": (raw("BitwiseOr"), BITS, BITS[0] | BITS[1]),
    "BitwiseXor": (raw("BitwiseXor"), BITS, BITS[0] ^ BITS[1]),
    "CheckNumericsV2": (raw("CheckNumericsV2", message="fine"), (M,), M),
    "ConjugateTranspose": (raw("ConjugateTranspose"), (COMPLEX, int32(1, 0)), COMPLEX.conj().T),
    "CumulativeLogsumexp": (raw("CumulativeLogsumexp"), (M, int32(1)), logsumexp_scan(M)),
    "Erfinv": (raw("Erfinv"), (np.array([math.erf(x) for x in (-2.0, -0.1, 0.0, 1.5)]),), np.array([-2.0, -0.1, 0.0, 1.5])),
    "Invert": (raw("Invert"), BITS[:1], ~BITS[0]),
    "LinSpace": (raw("LinSpace"), (np.float64(1), np.float64(-2), int32(7)), np.linspace(1, -2, 7)),
    "MatrixBandPart": (raw("MatrixBandPart"), (SQUARE, np.int64(1), np.int64(0)), np.tril(np.triu(SQUARE, -1))),
    "MatrixDiag": (raw("MatrixDiag"), (np.array([[1.0, 2.0], [3.0, 4.0]]),), np.array([[[1.0, 0], [0, 2]], [[3, 0], [0, 4]]])),
    "MatrixDiagPart": (raw("MatrixDiagPart"), (SQUARE,), np.diagonal(SQUARE, 0, 1, 2)),
    "MatrixDiagPartV2": (raw("MatrixDiagPartV2"), (SQUARE, int32(-1), np.float64(0)), np.diagonal(SQUARE, -1, 1, 2)),
    "MatrixDiagPartV3": (raw("MatrixDiagPartV3"), (SQUARE, int32(1), np.float64(0)), np.diagonal(SQUARE, 1, 1, 2)),
    "MatrixDiagV2": (
        raw("MatrixDiagV2"),
        (np.array([5.0, 6.0]), int32(1), int32(-1), int32(-1), np.float64(9)),
        np.array([[9.0, 5, 9], [9, 9, 6], [9, 9, 9]]),
    ),
    "MatrixSetDiag": (raw("MatrixSetDiag"), (np.ones((2, 2)), np.array([3.0, 4.0])), np.array([[3.0, 1], [1, 4]])),
    "Multinomial": (raw("Multinomial", seed=3), (np.array([[0.0, -1e9], [-1e9, 0.0]]), int32(4)), np.array([[0] * 4, [1] * 4])),
    "Ndtri": (raw("Ndtri"), (P,), np.array([NormalDist().inv_cdf(p) for p in P])),
    "UniqueV2": (raw("UniqueV2"), (int32(7, 7, 1, 7), np.array([0], np.int64)), [int32(7, 1), int32(0, 0, 1, 0)]),
    "Xlog1py": (raw("Xlog1py"), (np.array([0.0, 2.0]), np.array([-1.0, 0.5])), np.array([0.0, 2 * math.log(1.5)])),
    "Zeta": (raw("Zeta"), (np.array([2.0, 4, 2]), np.array([1.0, 1, 2])), np.array([ZETA_2, math.pi**4 / 90, ZETA_2 - 1])),
}  # fmt: skip


@pytest.mark.parametrize("op_type", ANSWERS)
def test_an_operation_gives_what_numpy_or_a_closed_form_gives(op_type: str) -> None:
    build, inputs, wanted = ANSWERS[op_type]
    got = evaluate(build, *inputs)
    for value, answer in zip(got, wanted, strict=True) if isinstance(wanted, list) else [(got, wanted)]:
        assert value.shape == np.shape(answer)
        tolerance = 1e-6 if value.dtype.kind in "fc" and value.dtype.itemsize in (4, 8) and op_type == "Angle" else 1e-10
        np.testing.assert_allclose(value, answer, tolerance, tolerance)


def test_old_placeholders_are_fed() -> None:
    graph = Graph()
    with graph.as_default():
        x = apply_op("PlaceholderV2", dtype=tf.float32, shape=(2,))
        y = x + x
    np.testing.assert_array_equal(Reference(graph).run(y, {x: [1, 2]}), [2, 4])
    with tf.Session(graph=graph) as session:
        np.testing.assert_array_equal(session.run(y, {x: [1, 2]}), [2, 4])
        with pytest.raises(tf.errors.InvalidArgumentError, match="You must feed a value for placeholder tensor 'PlaceholderV2'"):
            session.run(y)
