"""``tf.flags`` and the other names that scripts use before they build anything, in whole scripts."""

from pathlib import Path
from typing import Any

import mpirt as tf
from mpirt import errors

SCRIPT = '''"""What this script is for."""
import mpirt as tf

tf.disable_v2_behavior()
tf.disable_eager_execution()
assert not tf.executing_eagerly() and tf.app.flags is tf.flags
flags = tf.flags
flags.DEFINE_string("data_dir", "/data", "Where the data is.")
flags.DEFINE_integer(flag_name="steps", default_value=3, docstring="How many steps.")
flags.DEFINE_bool("sync", default=False, help="Whether to wait.")
flags.DEFINE_float("rate", None, "Learning rate.", lower_bound=0.0)
flags.DEFINE_list("hosts", "a,b", "Hosts.")
flags.DEFINE_enum("mode", "train", ["train", "eval"], "Mode.")
FLAGS = flags.FLAGS


def main(argv):
    print(argv[1:], FLAGS.data_dir, FLAGS.steps, FLAGS.sync, FLAGS.rate, FLAGS.hosts, FLAGS.mode)
    return 4


if __name__ == "__main__":
    tf.app.run()
'''


def test_a_script_reads_its_flags_leaves_unknown_ones_and_ends_with_mains_status(mpirun: Any, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    plain = mpirun(None, path, expect_rc=4)
    assert plain.stdout == "[] /data 3 False None ['a', 'b'] train\n"
    given = ["--steps=7", "--sync", "--rate=0.5", "--hosts=x,y", "--mode", "eval", "--unknown=1", "rest"]
    told = mpirun(None, path, given, expect_rc=4)
    assert told.stdout == "['--unknown=1', 'rest'] /data 7 True 0.5 ['x', 'y'] eval\n"
    refused = mpirun(None, path, ["--mode=test"], expect_rc="nonzero")
    assert "--mode=test" in refused.stderr and "train|eval" in refused.stderr
    shown = mpirun(None, path, ["--help"], expect_rc="nonzero")
    assert "What this script is for." in shown.stdout and "Where the data is." in shown.stdout


def test_codes_and_classes_of_errors_name_each_other() -> None:
    assert errors.exception_type_from_error_code(errors.NOT_FOUND) is tf.errors.NotFoundError
    assert errors.error_code_from_exception_type(tf.errors.NotFoundError) == 5
    error = tf.errors.AbortedError(None, None, "TensorFlow's order")
    assert isinstance(error, tf.OpError) and (error.message, error.error_code, error.op) == ("TensorFlow's order", tf.errors.ABORTED, None)
