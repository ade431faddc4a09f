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

class CreateSession(_message.Message):
    __slots__ = ("request", "session", "isolate")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ISOLATE_FIELD_NUMBER: _ClassVar[int]
    request: int
    session: int
    isolate: bool
    def __init__(self, request: _Optional[int] = ..., session: _Optional[int] = ..., isolate: bool = ...) -> None: ...

class ExtendSession(_message.Message):
    __slots__ = ("session", "graph_def", "foreign", "constants", "places")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    GRAPH_DEF_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    session: int
    graph_def: bytes
    foreign: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    constants: _containers.RepeatedCompositeFieldContainer[LargeConstant]
    places: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session: _Optional[int] = ..., graph_def: _Optional[bytes] = ..., foreign: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., constants: _Optional[_Iterable[_Union[LargeConstant, _Mapping]]] = ..., places: _Optional[_Iterable[str]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "unknown_rank", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_RANK_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: int
    unknown_rank: bool
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[int] = ..., unknown_rank: bool = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class LargeConstant(_message.Message):
    __slots__ = ("tensor", "tag")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    tensor: TensorSpec
    tag: int
    def __init__(self, tensor: _Optional[_Union[TensorSpec, _Mapping]] = ..., tag: _Optional[int] = ...) -> None: ...

class RegisterGraph(_message.Message):
    __slots__ = ("session", "graph", "program")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    session: int
    graph: int
    program: ProgramDef
    def __init__(self, session: _Optional[int] = ..., graph: _Optional[int] = ..., program: _Optional[_Union[ProgramDef, _Mapping]] = ...) -> None: ...

class ProgramDef(_message.Message):
    __slots__ = ("num_slots", "devices", "nodes", "transfers", "instructions", "constants", "packets")
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    num_slots: int
    devices: _containers.RepeatedScalarFieldContainer[str]
    nodes: _containers.RepeatedScalarFieldContainer[str]
    transfers: _containers.RepeatedCompositeFieldContainer[TransferDef]
    instructions: _containers.RepeatedCompositeFieldContainer[InstructionDef]
    constants: _containers.RepeatedCompositeFieldContainer[ConstantDef]
    packets: _containers.RepeatedCompositeFieldContainer[PacketDef]
    def __init__(self, num_slots: _Optional[int] = ..., devices: _Optional[_Iterable[str]] = ..., nodes: _Optional[_Iterable[str]] = ..., transfers: _Optional[_Iterable[_Union[TransferDef, _Mapping]]] = ..., instructions: _Optional[_Iterable[_Union[InstructionDef, _Mapping]]] = ..., constants: _Optional[_Iterable[_Union[ConstantDef, _Mapping]]] = ..., packets: _Optional[_Iterable[_Union[PacketDef, _Mapping]]] = ...) -> None: ...

class PacketDef(_message.Message):
    __slots__ = ("transfers",)
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    transfers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfers: _Optional[_Iterable[int]] = ...) -> None: ...

class TransferDef(_message.Message):
    __slots__ = ("index", "tensor", "src_rank", "dst_rank", "src", "reason", "in_place")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    SRC_RANK_FIELD_NUMBER: _ClassVar[int]
    DST_RANK_FIELD_NUMBER: _ClassVar[int]
    SRC_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    index: int
    tensor: TensorSpec
    src_rank: int
    dst_rank: int
    src: str
    reason: str
    in_place: bool
    def __init__(self, index: _Optional[int] = ..., tensor: _Optional[_Union[TensorSpec, _Mapping]] = ..., src_rank: _Optional[int] = ..., dst_rank: _Optional[int] = ..., src: _Optional[str] = ..., reason: _Optional[str] = ..., in_place: bool = ...) -> None: ...

class InstructionDef(_message.Message):
    __slots__ = ("kind", "node", "device", "inputs", "outputs", "output", "from_space", "to_space", "parts", "name", "how", "number", "labels", "made")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FROM_SPACE_FIELD_NUMBER: _ClassVar[int]
    TO_SPACE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    kind: int
    node: int
    device: int
    inputs: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedScalarFieldContainer[int]
    output: int
    from_space: str
    to_space: str
    parts: _containers.RepeatedScalarFieldContainer[int]
    name: str
    how: str
    number: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    made: TensorSpec
    def __init__(self, kind: _Optional[int] = ..., node: _Optional[int] = ..., device: _Optional[int] = ..., inputs: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[int]] = ..., output: _Optional[int] = ..., from_space: _Optional[str] = ..., to_space: _Optional[str] = ..., parts: _Optional[_Iterable[int]] = ..., name: _Optional[str] = ..., how: _Optional[str] = ..., number: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., made: _Optional[_Union[TensorSpec, _Mapping]] = ...) -> None: ...

class ConstantDef(_message.Message):
    __slots__ = ("slot", "node", "device")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    node: int
    device: int
    def __init__(self, slot: _Optional[int] = ..., node: _Optional[int] = ..., device: _Optional[int] = ...) -> None: ...

class RunGraph(_message.Message):
    __slots__ = ("graph", "step", "tag")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    graph: int
    step: int
    tag: int
    def __init__(self, graph: _Optional[int] = ..., step: _Optional[int] = ..., tag: _Optional[int] = ...) -> None: ...

class StepDone(_message.Message):
    __slots__ = ("step", "error", "dead", "long")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    LONG_FIELD_NUMBER: _ClassVar[int]
    step: int
    error: ErrorRecord
    dead: bool
    long: bool
    def __init__(self, step: _Optional[int] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ..., dead: bool = ..., long: bool = ...) -> None: ...

class CancelStep(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    def __init__(self, step: _Optional[int] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("request", "containers")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    request: int
    containers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request: _Optional[int] = ..., containers: _Optional[_Iterable[str]] = ...) -> None: ...

class CloseSession(_message.Message):
    __slots__ = ("request", "session")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    request: int
    session: int
    def __init__(self, request: _Optional[int] = ..., session: _Optional[int] = ...) -> None: ...

class SessionEnded(_message.Message):
    __slots__ = ("session", "error")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    session: int
    error: ErrorRecord
    def __init__(self, session: _Optional[int] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("request", "error")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request: int
    error: ErrorRecord
    def __init__(self, request: _Optional[int] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ...) -> None: ...

class StepStatus(_message.Message):
    __slots__ = ("step", "waiting_for")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    step: int
    waiting_for: str
    def __init__(self, step: _Optional[int] = ..., waiting_for: _Optional[str] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("kind", "error", "number")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    kind: int
    error: ErrorRecord
    number: int
    def __init__(self, kind: _Optional[int] = ..., error: _Optional[_Union[ErrorRecord, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class Gone(_message.Message):
    __slots__ = ("rank",)
    RANK_FIELD_NUMBER: _ClassVar[int]
    rank: int
    def __init__(self, rank: _Optional[int] = ...) -> None: ...

class Rest(_message.Message):
    __slots__ = ("resting", "busy_with")
    RESTING_FIELD_NUMBER: _ClassVar[int]
    BUSY_WITH_FIELD_NUMBER: _ClassVar[int]
    resting: bool
    busy_with: str
    def __init__(self, resting: bool = ..., busy_with: _Optional[str] = ...) -> None: ...
