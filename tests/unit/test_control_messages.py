"""Control messages: the checked-in code is that of control.proto, and errors arrive as what they were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

import mpirt
from mpirt import errors
from mpirt.distributed import control_pb2
from mpirt.distributed.control import _MESSAGE, Kind, to_error, to_record
from mpirt.graph.graph import Graph
from mpirt.ops.apply import constant

FOLDER = Path(mpirt.__file__).parent / "distributed"
TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_DOUBLE: "double",
}
Fields = dict[str, dict[str, tuple[str, int]]]  # message -> field -> (type, number)


def fields_of_the_proto() -> Fields:
    """What control.proto says. It uses messages of plain fields only; anything else is refused here."""
    text = re.sub(r"//.*", "", (FOLDER / "control.proto").read_text())
    head, *messages = re.split(r"^message ", text, flags=re.MULTILINE)
    assert re.fullmatch(r'\s*syntax = "proto3";\s*package mpirt;\s*', head)
    found: Fields = {}
    for message in messages:
        parts = re.fullmatch(r"(\w+) \{(.*)\}\s*", message, re.DOTALL)
        assert parts, message
        found[parts[1]] = {}
        for field in filter(str.strip, parts[2].split(";")):
            words = re.fullmatch(r"\s*((?:repeated )?\w+) (\w+) = (\d+)\s*", field)
            assert words, f"in {parts[1]}: {field!r}"
            found[parts[1]][words[2]] = (words[1], int(words[3]))
    return found


def fields_of_the_code() -> Fields:
    """What control_pb2.py says."""
    messages: Any = control_pb2.DESCRIPTOR.message_types_by_name
    found: Fields = {}
    for name, message in messages.items():
        found[name] = {}
        for field in message.fields:
            kind = field.message_type.name if field.message_type else TYPES[field.type]
            repeated = "repeated " if "[]" in repr(getattr(message._concrete_class(), field.name)) else ""
            found[name][field.name] = (repeated + kind, field.number)
    return found


def test_the_generated_code_is_that_of_the_proto_file() -> None:
    assert fields_of_the_code() == fields_of_the_proto(), "run protoc on mpirt/distributed/control.proto again"


def test_the_type_stubs_are_those_of_the_proto_file() -> None:
    stub = (FOLDER / "control_pb2.pyi").read_text()
    classes = dict(re.findall(r"^class (\w+)\(.*?\n((?:    .*\n|\n)*)", stub, re.MULTILINE))
    wanted = {name: set(fields) for name, fields in fields_of_the_proto().items()}
    found = {name: set(re.findall(r"^    ([a-z]\w*): ", body, re.MULTILINE)) for name, body in classes.items()}
    assert found == wanted


def test_every_kind_of_message_has_its_class_and_a_number_of_its_own() -> None:
    assert set(_MESSAGE) == set(Kind)
    assert len({int(kind) for kind in Kind}) == len(Kind)
    assert all(0 < kind <= 32767 for kind in Kind), "kinds are tags, of which MPI promises no larger ones"


@pytest.mark.parametrize("kind", [errors.CLASS_OF_CODE[code] for code in sorted(errors.CLASS_OF_CODE)], ids=lambda k: k.__name__)
def test_an_error_arrives_with_class_text_place_origin_operation_and_traceback(kind: type[errors.OpError]) -> None:
    with Graph().as_default() as graph:
        op = constant(1.0, name="somewhere/c").op
    sent = kind("it went wrong: größe 3 > 2.", op=op, hint="make it smaller.", origin="rank 2 (host n1, pid 77)")
    wire = to_record(sent, position=5, traceback="Traceback: line 1\n").SerializeToString()
    record = control_pb2.ErrorRecord.FromString(wire)
    assert record.position == 5
    arrived = to_error(record, graph)
    assert type(arrived) is kind
    assert isinstance(arrived, errors.OpError)
    assert str(arrived) == str(sent)
    assert (arrived.message, arrived.hint, arrived.origin, arrived.where) == (sent.message, sent.hint, sent.origin, sent.where)
    assert arrived.op is op
    assert arrived.__notes__ == ["Traceback of rank 2 (host n1, pid 77):\nTraceback: line 1\n"]


def test_an_error_without_operation_or_traceback_arrives_as_plain_as_it_was() -> None:
    arrived = to_error(to_record(errors.AbortedError("given up.")), None)
    assert type(arrived) is errors.AbortedError and str(arrived) == "given up."
    assert arrived.op is None and not hasattr(arrived, "__notes__")


def test_an_operation_that_this_ranks_graph_has_not_is_left_out_but_its_place_stays() -> None:
    with Graph().as_default():
        sent = errors.InvalidArgumentError("bad.", op=constant(1.0, name="only/there").op)
    arrived = to_error(to_record(sent), Graph())
    assert isinstance(arrived, errors.InvalidArgumentError)
    assert arrived.op is None and str(arrived) == str(sent)
    assert re.search(r"defined at \S*test_control_messages\.py:\d+\.", str(arrived))


@pytest.mark.parametrize("kind", [ValueError, TypeError, RuntimeError])
def test_errors_of_python_arrive_as_themselves(kind: type[Exception]) -> None:
    arrived = to_error(to_record(kind("what the user gave")), None)
    assert type(arrived) is kind and arrived.args == ("what the user gave",)


def test_an_error_of_a_class_that_is_not_known_arrives_as_unknown() -> None:
    class Odd(Exception):
        pass

    arrived = to_error(to_record(Odd("odd")), None)
    assert type(arrived) is errors.UnknownError and str(arrived) == "odd"
