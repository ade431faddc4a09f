"""Writes tests/golden/tf/: TensorFlow's answers, for tests that must run without TensorFlow.

Run it with an environment that has tensorflow-cpu (2.21 made the files that are checked in)::

    python tests/golden/make_tf_golden.py            # everything
    python tests/golden/make_tf_golden.py --only ops surface

The same TensorFlow version on the same machine writes the same bytes.

Files
-----
ops.json      OpDefs from TensorFlow's registry: argument and attribute names, types, defaults
surface.json  signatures of the public functions and classes of tensorflow.compat.v1
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

import tensorflow.compat.v1 as tf
import tf_registry

OUT = Path(__file__).parent / "tf"


def write_json(path: Path, entries: dict[str, Any]) -> None:
    """One line an entry of the outer dict, so that a diff shows which entry changed."""
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
    parser.add_argument("--only", nargs="*", default=["ops", "surface"])
    only = parser.parse_args().only
    tf.disable_v2_behavior()
    OUT.mkdir(exist_ok=True)
    if "ops" in only:
        write_json(OUT / "ops.json", tf_registry.ops())
    if "surface" in only:
        write_json(OUT / "surface.json", tf_registry.surface(tf))


if __name__ == "__main__":
    main()
