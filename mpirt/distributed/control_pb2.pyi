from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorRecord(_message.Message):
    __slots__ = ("kind", "message", "hint", "operation", "origin", "traceback", "where", "position")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    hint: str
    operation: str
    origin: str
    traceback: str
    where: str
    position: int
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., operation: _Optional[str] = ..., origin: _Optional[str] = ..., traceback: _Optional[str] = ..., where: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...

class Table(_message.Message):
    __slots__ = ("text", "source", "error")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    text: str
    source: str
    error: ErrorRecord
    def __init__(self, text: _Optional[str] = ..., source: _Optional[str] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("asked", "version", "tasks", "error")
    ASKED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    asked: str
    version: str
    tasks: _containers.RepeatedCompositeFieldContainer[TaskDevices]
    error: ErrorRecord
    def __init__(self, asked: _Optional[str] = ..., version: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[TaskDevices, _Mapping]]] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ...) -> None: ...

class TaskDevices(_message.Message):
    __slots__ = ("job", "index", "devices")
    JOB_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    job: str
    index: int
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job: _Optional[str] = ..., index: _Optional[int] = ..., devices: _Optional[_Iterable[str]] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("tasks", "error")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[TaskDevices]
    error: ErrorRecord
    def __init__(self, tasks: _Optional[_Iterable[_Union[TaskDevices, _Mapping]]] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("call", "session", "fetches", "feeds", "fingerprint", "options", "where")
    CALL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FETCHES_FIELD_NUMBER: _ClassVar[int]
    FEEDS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    call: int
    session: int
    fetches: _containers.RepeatedScalarFieldContainer[str]
    feeds: _containers.RepeatedScalarFieldContainer[str]
    fingerprint: bytes
    options: str
    where: str
    def __init__(self, call: _Optional[int] = ..., session: _Optional[int] = ..., fetches: _Optional[_Iterable[str]] = ..., feeds: _Optional[_Iterable[str]] = ..., fingerprint: _Optional[bytes] = ..., options: _Optional[str] = ..., where: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("call", "feeds", "describe", "error")
    CALL_FIELD_NUMBER: _ClassVar[int]
    FEEDS_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    call: int
    feeds: _containers.RepeatedCompositeFieldContainer[Feed]
    describe: bool
    error: ErrorRecord
    def __init__(self, call: _Optional[int] = ..., feeds: _Optional[_Iterable[_Union[Feed, _Mapping]]] = ..., describe: bool = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ...) -> None: ...

class Feed(_message.Message):
    __slots__ = ("name", "ranks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    ranks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., ranks: _Optional[_Iterable[int]] = ...) -> None: ...

class OperationList(_message.Message):
    __slots__ = ("call", "operations")
    CALL_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    call: int
    operations: _containers.RepeatedCompositeFieldContainer[OperationSummary]
    def __init__(self, call: _Optional[int] = ..., operations: _Optional[_Iterable[_Union[OperationSummary, _Mapping]]] = ...) -> None: ...

class OperationSummary(_message.Message):
    __slots__ = ("name", "type", "where", "digest", "summary")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    where: str
    digest: bytes
    summary: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., where: _Optional[str] = ..., digest: _Optional[bytes] = ..., summary: _Optional[str] = ...) -> None: ...

class Settlement(_message.Message):
    __slots__ = ("call", "error")
    CALL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    call: int
    error: ErrorRecord
    def __init__(self, call: _Optional[int] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("call", "session", "fetches", "where", "waiting_for")
    CALL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FETCHES_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    call: int
    session: int
    fetches: _containers.RepeatedScalarFieldContainer[str]
    where: str
    waiting_for: str
    def __init__(self, call: _Optional[int] = ..., session: _Optional[int] = ..., fetches: _Optional[_Iterable[str]] = ..., where: _Optional[str] = ..., waiting_for: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("calls", "history")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    calls: int
    history: int
    def __init__(self, calls: _Optional[int] = ..., history: _Optional[int] = ...) -> None: ...
