"""TensorFlow's own answers for the scripts here: ``python tests/ports/tensorflow_answers.py [WORD]`` with TensorFlow >= 2.16.

Writes tensorflow.json: of every command there (or only those with WORD in them) what the script prints as its result with
``import tensorflow.compat.v1 as tf`` (v2 behaviour off) in place of the import of mpirt. The other tasks of a command that
starts a server are processes of their own; the embedding model, which starts none, gets four servers in its process (and
loses its ``cluster_def``, which TensorFlow refuses where servers know their cluster).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
IMPORT = "import tensorflow.compat.v1 as tf; tf.disable_v2_behavior()"
SERVERS = """
CLUSTER = {"ps": ["localhost:2222", "localhost:2223"], "worker": ["localhost:2224", "localhost:2225"]}
SERVERS = [tf.train.Server(CLUSTER, job, index) for job in CLUSTER for index in range(2)]
"""
BETWEEN = "between_graph --job_name=worker --task_index=0"
ONE_WORKER = "--worker_hosts=localhost:2224"
PS = [["--job_name=ps"], ["--job_name=ps", "--task_index=1"]]
WORKER_1 = ["--job_name=worker", "--task_index=1"]

# Command -> arguments that differ, of the tasks that are processes of their own.
COMMANDS: dict[str, list[list[str]]] = {
    "logistic_regression": [],
    "mlp": [],
    **{f"embedding --optimizer={name}": [] for name in ("sgd", "momentum", "adagrad", "adam", "rmsprop")},
    f"{BETWEEN} {ONE_WORKER}": PS[:1],
    f"{BETWEEN} {ONE_WORKER} --ps_hosts=localhost:2222,localhost:2223": PS,
    "in_graph": [*PS, WORKER_1],
}
# Two workers at their own pace: the result is another one each time.
ASYNCHRONOUS = {BETWEEN: [PS[0], WORKER_1], f"{BETWEEN} --ps_hosts=localhost:2222,localhost:2225": [*PS, WORKER_1]}


def ported(script: str, folder: Path) -> Path:
    """The script with TensorFlow's import line."""
    path = folder / f"{script}.py"
    text = (HERE / path.name).read_text().replace("\nimport mpirt as tf\n", f"\n{IMPORT}\n")
    if script == "embedding":
        text = text.replace(f"\n{IMPORT}\n", f"\n{IMPORT}\n{SERVERS}").replace(", config=config)", ")")
    path.write_text(text)
    return path


def result(command: str, others: list[list[str]], folder: Path) -> Any:
    """What TensorFlow prints for the command; the other tasks are killed in the end, as a ps never leaves ``join``."""
    script, *args = command.split()
    path = str(ported(script, folder))
    if script == "embedding":
        args.append("--master=grpc://localhost:2224")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    running = [subprocess.Popen([sys.executable, path, *args, *other], env=environment) for other in others]
    try:
        command_line = [sys.executable, path, *args]
        ran = subprocess.run(command_line, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    finally:
        for process in running:
            process.kill()
            process.wait()
    (found,) = re.findall(r"RESULT (\{.*\})", ran.stdout)
    return rounded(json.loads(found))


def rounded(value: Any) -> Any:
    """Floats with 7 digits, which is what a float32 has."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only commands that contain it; the others' answers stay")
    parser.add_argument("--asynchronous", type=int, metavar="N", help="print the losses of N runs with two workers instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.asynchronous:
            for command, others in ASYNCHRONOUS.items():
                for _ in range(args.asynchronous):
                    found = result(command, others, Path(folder))
                    print(command, {key: found[key] for key in ("loss", "accuracy", "global_step")}, flush=True)
            return
        path = HERE / "tensorflow.json"
        answers = json.loads(path.read_text())
        for command, others in COMMANDS.items():
            if args.word in command:
                answers[command] = result(command, others, Path(folder))
        lines = [f"  {json.dumps(command)}: {json.dumps(answers[command])}" for command in COMMANDS if command in answers]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
