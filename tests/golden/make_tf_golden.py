"""Writes tests/golden/tf/: TensorFlow's answers, for tests that must run without TensorFlow.

Run it in the repository's root with an environment that has tensorflow-cpu (2.21 made the files that are checked in)::

    python -m tests.golden.make_tf_golden                       # everything
    python -m tests.golden.make_tf_golden --only ops surface    # a part
    python -m tests.golden.make_tf_golden --try gathers         # one case, and print what it gave

The same TensorFlow version on the same machine writes the same bytes. The cases are in tf_cases_*.py.

Files
-----
ops.json       OpDefs from TensorFlow's registry: argument and attribute names, types, defaults
surface.json   signatures of the public functions and classes of tensorflow.compat.v1
scopes.json    answers to the questions of tf_scopes.py
<case>.npz     graph_def: the bytes of the GraphDef, as ``graph.as_graph_def()`` exports it (compressed: a tenth of its size);
               all values of the case: one flat array per dtype; strings as fixed-width bytes
cases.json     per case:
    shapes     tensor name -> [dtype, static shape after importing the GraphDef into an empty graph]; null: unknown ndim or
               dimension. In the order of the nodes, without outputs of Const.
    feeds      {tensor: value}: what every step feeds that has no ``feeds`` of its own
    steps      the ``session.run`` calls in order, one session: {feeds, targets: [op], fetch: [[tensor, value]]}, or with
               ``error``: the class that must be raised. A fetched tensor is its index in ``shapes``, or its name when it isn't
               there. A value is [array in the .npz, start in that flat array, shape]; without the shape where that is the
               tensor's static shape.
               A step with ``inspect`` fetches the intermediate tensors, in the order of the nodes: its first difference names
               the kernel to blame.
    scale      factor on the usual tolerances
    raw        true: made of op types without a public function, so that it can be checked by import only
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.framework import op_def_registry

from tests.golden import (  # noqa: F401  (they register their cases)
    tf_cases_array,
    tf_cases_data_flow,
    tf_cases_functional,
    tf_cases_math,
    tf_cases_nn,
    tf_cases_sparse,
    tf_registry,
    tf_scopes,
)
from tests.golden.tf_case import CASES, Case, build

OUT = Path(__file__).parent / "tf"
INSPECT_ELEMENTS = 200  # larger intermediates aren't recorded

# Stateful op types that change nothing a second read could see.
PURE_STATEFUL = {
    "VariableV2", "Variable", "VarHandleOp", "ReadVariableOp", "VarIsInitializedOp", "ResourceGather", "ResourceGatherNd",
    "VariableShape", "Assert", "IsVariableInitialized", "RefIdentity",
}  # fmt: skip


def session_config() -> Any:
    """No graph rewriting, so that every value is its kernel's own answer, and one thread, so that it is always the same."""
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    config.graph_options.optimizer_options.opt_level = -1
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.rewrite_options.constant_folding = rewriter_config_pb2.RewriterConfig.OFF
    return config


class Values:
    """The arrays of one case: equal ones stored once, one flat array per dtype."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[Any]] = {}
        self._sizes: dict[str, int] = {}
        self._seen: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def add(self, value: Any, static: list[int | None] | None = None) -> list[Any]:
        """Where ``value`` is: [array, start, shape], without the shape where it is ``static``."""
        array = np.asarray(value)
        if array.dtype.kind in "OU":
            flat = [v.encode() if isinstance(v, str) else v for v in array.reshape(-1)]
            array = np.array(flat, f"S{max([1, *map(len, flat)])}").reshape(array.shape)
        name = array.dtype.str.lstrip("<>|=")
        key = (name, array.shape, array.tobytes())
        if key not in self._seen:
            self._seen[key] = self._sizes.get(name, 0)
            self._sizes[name] = self._seen[key] + array.size
            self._chunks.setdefault(name, []).append(array.reshape(-1))
        place = [name, self._seen[key]]
        return place if static == list(array.shape) else [*place, list(array.shape)]

    def write(self, path: Path, graph_def: bytes) -> None:
        arrays = {name: np.concatenate(chunks) for name, chunks in sorted(self._chunks.items())}
        np.savez_compressed(path, graph_def=np.frombuffer(graph_def, np.uint8), **arrays)


def static_shapes(graph_def: Any) -> dict[str, Any]:
    """[dtype, shape] of every tensor after a plain import: shape inference alone, without what Python code had set."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    return {
        t.name: [t.dtype.name, t.shape.as_list() if t.shape.ndims is not None else None]
        for op in graph.get_operations()
        if op.type != "Const"
        for t in op.outputs
    }


def changes_state(op: Any) -> bool:
    """Whether running ``op`` can be seen by another op or gives another answer the second time."""
    if op.type in PURE_STATEFUL:
        return False
    op_def = op_def_registry.get(op.type)
    return bool(op_def.is_stateful) or any(a.is_ref for a in op_def.input_arg)


def inspectable(graph: Any, fed: set[str]) -> list[Any]:
    """Tensors whose ancestors change no state; fed tensors end the walk."""
    dirty: dict[Any, bool] = {}

    def is_dirty(op: Any) -> bool:
        stack = [op]
        while stack:
            top = stack[-1]
            before = [*top.control_inputs, *(t.op for t in top.inputs if t.name not in fed)]
            waiting = [o for o in before if o not in dirty]
            if waiting:
                stack.extend(waiting)
                continue
            dirty[top] = (
                changes_state(top)
                or any(dirty[o] for o in before)
                or (top.type == "Placeholder" and top.outputs[0].name not in fed)
            )
            stack.pop()
        return dirty[op]

    return [
        t
        for op in graph.get_operations()
        if op.type not in ("Const", "Placeholder") and not is_dirty(op)
        for t in op.outputs
        if t.name not in fed and t.dtype.base_dtype not in (tf.resource, tf.variant) and graph.is_fetchable(t)
    ]


def answer(case: Case) -> tuple[dict[str, Any], set[str]]:
    """Build and run a case in TensorFlow, write its .npz, return its entry of cases.json and its op types."""
    (tf.enable_control_flow_v2 if case.functional else tf.disable_control_flow_v2)()
    graph, builder, runs = build(tf, case)
    values = Values()
    steps: list[dict[str, Any]] = []
    with graph.as_default(), tf.Session(graph=graph, config=session_config()) as session:
        graph_def = graph.as_graph_def()
        shapes = static_shapes(graph_def)
        index = {name: k for k, name in enumerate(shapes)}

        def pair(tensor: Any, value: Any) -> list[Any]:
            name = tensor.name
            return [index[name], values.add(value, shapes[name][1])] if name in index else [name, values.add(value)]

        def fed(feeds: dict[Any, Any]) -> dict[str, Any]:
            return {t.name: values.add(v, shapes[t.name][1]) for t, v in feeds.items()}

        def inspect(feeds: dict[Any, Any]) -> None:
            fetched = {t for step in steps for t, _ in step.get("fetch", ())}
            tensors, result = [], []
            for tensor in inspectable(graph, {t.name for t in feeds}):
                try:  # one by one: a tensor that only has a static shape to test can't be computed
                    value = session.run(tensor, feeds)
                except tf.errors.OpError:
                    continue
                if np.size(value) <= INSPECT_ELEMENTS and index[tensor.name] not in fetched:
                    tensors.append(tensor)
                    result.append(value)
            if tensors:
                steps.append({"inspect": True, "feeds": fed(feeds), "fetch": list(map(pair, tensors, result))})

        if builder.inspect and not any(run.init for run in runs):
            inspect(runs[-1].feeds)
        for run in runs:
            step: dict[str, Any] = {}
            step["feeds"] = fed(run.feeds)
            fetch = [graph.as_graph_element(f) for f in run.fetch]
            targets = [graph.as_graph_element(f) for f in run.targets]
            targets = [getattr(t, "op", t) for t in targets]
            if targets:
                step["targets"] = [t.name for t in targets]
            try:
                result = session.run([*targets, *fetch], run.feeds)[len(targets) :]
            except tf.errors.OpError as error:
                assert type(error).__name__ == run.error, (case.name, run.error, error)
                step["error"] = run.error
                step["fetch"] = [[index.get(t.name, t.name), None] for t in fetch]
            else:
                assert not run.error, (case.name, [f.name for f in fetch], "should have raised", run.error, result)
                step["fetch"] = list(map(pair, fetch, result))
            steps.append(step)
            if run.init and builder.inspect:
                inspect(run.feeds)
    values.write(OUT / f"{case.name}.npz", graph_def.SerializeToString(deterministic=True))
    common = steps[-1]["feeds"] if steps else {}
    for step in steps:
        if step["feeds"] == common:
            del step["feeds"]
    entry: dict[str, Any] = {"feeds": common}
    if builder.scale != 1.0:
        entry["scale"] = builder.scale
    if builder.uses_raw:
        entry["raw"] = True
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    return entry | {"steps": steps, "shapes": shapes}, {n.op for n in nodes}


def write_json(path: Path, entries: dict[str, Any]) -> None:
    """One line an entry, so that a diff shows which entry changed."""
    lines = []
    for key, value in entries.items():
        if isinstance(value, dict) and key in ("functions", "classes", "cases"):
            inner = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
            lines.append(f"{json.dumps(key)}: {{\n  {inner}\n }}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}")
    path.write_text("{\n " + ",\n ".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["ops", "surface", "scopes", "cases"])
    parser.add_argument("--try", nargs="*", dest="names", default=[], help="run these cases and write nothing but their files")
    args = parser.parse_args()
    tf.disable_v2_behavior()
    OUT.mkdir(exist_ok=True)
    if args.names:
        for name in args.names:
            print(name, json.dumps(answer(CASES[name])[0])[:4000])
        return
    used: set[str] = set()
    if "cases" in args.only:
        for old in OUT.glob("*.npz"):
            old.unlink()
        entries, failed = {}, {}
        for name, golden_case in sorted(CASES.items()):
            try:
                entries[name], op_types = answer(golden_case)
                used |= op_types
            except Exception as error:  # every broken case is listed before the exit code says so
                failed[name] = f"{type(error).__name__}: {error}"
        write_json(OUT / "cases.json", {"tensorflow_version": tf.__version__, "cases": entries})
        for name, text in failed.items():
            print(f"{name}: {text[:600]}")
        print(f"{len(entries)} cases, {len(used)} op types, {sum(f.stat().st_size for f in OUT.iterdir()) / 1e6:.2f} MB")
        if failed:
            raise SystemExit(1)
    if "ops" in args.only:
        write_json(OUT / "ops.json", tf_registry.ops(used))
    if "surface" in args.only:
        write_json(OUT / "surface.json", tf_registry.surface(tf))
    if "scopes" in args.only:
        write_json(OUT / "scopes.json", {"tensorflow_version": tf.__version__, **tf_scopes.answers(tf)})


if __name__ == "__main__":
    main()
