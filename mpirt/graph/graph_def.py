"""Graphs as TensorFlow's GraphDef and back.

Guarantee: ``import_graph_def(graph.as_graph_def())`` gives the same operations; TensorFlow reads what we export and we
read what it exports, for the operation types of the registry. The message classes are ``tensorboard.compat.proto``'s.
Malformed or unknown content raises one clear error; nothing is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
from tensorboard.compat.proto import attr_value_pb2, function_pb2, graph_pb2, node_def_pb2, op_def_pb2, tensor_pb2, versions_pb2

from mpirt import dtypes, errors
from mpirt.dtypes import DType
from mpirt.graph.function import ARG, FuncGraph, Function
from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.graph.op_def import OpDef, arg_ranges, op_def
from mpirt.graph.shapes import TensorShape, as_shape

AT = "_at"  # attribute with the number of the user's line where the node was made, see `import_nodes`
_PRODUCER = 1882  # version of the GraphDef format that we write; any recent one will do

# ---------------------------------------------------------------------------------------------------------- export


def to_graph_def(graph: Graph, from_index: int = 0, add_shapes: bool = False) -> Any:
    """GraphDef of the graph's operations from position ``from_index``."""
    proto = graph_pb2.GraphDef(versions=versions_pb2.VersionDef(producer=_PRODUCER))
    for op in graph.operations_from(from_index):
        node = to_node_def(op)
        if add_shapes:
            shapes = node.attr["_output_shapes"].list
            shapes.shape.extend([TensorShape(t.static_shape).as_proto() for t in op.outputs])
        proto.node.append(node)
    for body in bodies(graph.operations_from(from_index)).values():
        proto.library.function.append(to_function_def(body))
    return proto


def bodies(operations: Iterable[Operation]) -> dict[str, Function]:
    """All bodies of ``operations``, and of the operations in them."""
    found: dict[str, Function] = {}
    waiting = list(operations)[::-1]
    while waiting:
        for _, value in sorted(waiting.pop().attrs.items()):
            if isinstance(value, Function) and value.name not in found:
                found[value.name] = value
                waiting.extend(reversed(value.graph.get_operations()))
    return found


def to_function_def(body: Function) -> Any:
    """FunctionDef of one body: arguments and results by name, inputs as ``node:output argument:position``."""
    proto = function_pb2.FunctionDef(signature=op_def_pb2.OpDef(name=body.name, is_stateful=body.stateful))
    for i, tensor in enumerate(body.inputs):
        base = tensor.dtype.base_dtype.enum
        proto.signature.input_arg.add(name=tensor.op.name, type=base, is_ref=tensor.dtype.is_ref)
        shapes = proto.arg_attr[i].attr["_output_shapes"].list
        shapes.shape.append(TensorShape(tensor.static_shape).as_proto())
    for i, tensor in enumerate(body.outputs):
        name = f"output_{i}"
        while name in body.graph._by_name:
            name += "_"
        proto.signature.output_arg.add(name=name, type=tensor.dtype.base_dtype.enum)
        proto.ret[name] = _name_inside(tensor)
    for i, op in enumerate(body.control_outputs):
        proto.signature.control_output.append(f"control_{i}")
        proto.control_ret[f"control_{i}"] = op.name
    for op in body.graph.get_operations():
        if op.type == ARG:
            continue
        node = to_node_def(op)
        del node.input[:]
        node.input.extend([_name_inside(t) for t in op.inputs] + [f"^{c.name}" for c in op.control_inputs])
        proto.node_def.append(node)
    return proto


def _name_inside(tensor: Tensor) -> str:
    """A tensor as the nodes of a FunctionDef name it."""
    op = tensor.op
    if op.type == ARG:
        return op.name
    for name, places in arg_ranges(op.definition.outputs, op.attrs).items():
        if places.start <= tensor.value_index < places.stop:
            return f"{op.name}:{name}:{tensor.value_index - places.start}"
    raise AssertionError(f"{tensor!r} is no output of its operation")


def to_node_def(op: Operation) -> Any:
    """NodeDef of one operation."""
    node = node_def_pb2.NodeDef(name=op.name, op=op.type, device=op.device)
    node.input.extend([t.op.name if t.value_index == 0 else t.name for t in op.inputs])
    node.input.extend([f"^{c.name}" for c in op.control_inputs])
    for key in sorted(op.attrs):
        kind = op.definition.attrs[key].kind if key in op.definition.attrs else _kind_of(op.attrs[key])
        node.attr[key].CopyFrom(to_attr_value(op.attrs[key], kind))
    return node


def to_attr_value(value: Any, kind: str) -> Any:
    """AttrValue of ``value`` of the attribute kind ``kind``."""
    proto = attr_value_pb2.AttrValue()
    if kind.startswith("list("):
        inner = kind[5:-1]
        field = _LIST_FIELD[inner]
        proto.list.SetInParent()
        for item in value:
            _append(getattr(proto.list, field), item, inner)
    elif kind == "string":
        proto.s = _bytes(value)
    elif kind == "int":
        proto.i = int(value)
    elif kind == "float":
        proto.f = float(value)
    elif kind == "bool":
        proto.b = bool(value)
    elif kind == "type":
        proto.type = dtypes.as_dtype(value).enum
    elif kind == "shape":
        proto.shape.CopyFrom(TensorShape(as_shape(value)).as_proto())
    elif kind == "tensor":
        proto.tensor.CopyFrom(make_tensor_proto(value))
    elif kind == "func":
        proto.func.name = value.name
    else:
        raise errors.UnimplementedError(f"attributes of kind {kind!r} can't be exported.")
    return proto


_LIST_FIELD = {"string": "s", "int": "i", "float": "f", "bool": "b", "type": "type", "shape": "shape", "tensor": "tensor"}


def _append(field: Any, item: Any, kind: str) -> None:
    if kind == "string":
        field.append(_bytes(item))
    elif kind == "type":
        field.append(dtypes.as_dtype(item).enum)
    elif kind == "shape":
        field.add().CopyFrom(TensorShape(as_shape(item)).as_proto())
    elif kind == "tensor":
        field.add().CopyFrom(make_tensor_proto(item))
    else:
        field.append({"int": int, "float": float, "bool": bool}[kind](item))


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _kind_of(value: Any) -> str:
    """Attribute kind of a value whose attribute isn't declared (names that start with an underscore)."""
    if isinstance(value, (list, tuple)):
        return f"list({_kind_of(value[0]) if value else 'string'})"
    for types, kind in (((bool,), "bool"), ((int,), "int"), ((float,), "float"), ((str, bytes), "string"), ((DType,), "type")):
        if isinstance(value, types):
            return kind
    return "tensor" if isinstance(value, np.ndarray) else "shape"


def make_tensor_proto(value: Any) -> Any:
    """TensorProto of an array; strings as ``bytes``."""
    array = np.asarray(value)
    dtype = dtypes.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(dtype=dtype.enum, tensor_shape=TensorShape(array.shape).as_proto())
    if dtype is dtypes.string:
        proto.string_val.extend([_bytes(v) for v in array.reshape(-1).tolist()])
    else:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        proto.tensor_content = np.ascontiguousarray(little).tobytes()
    return proto


# ---------------------------------------------------------------------------------------------------------- import

_VALUE_FIELD = {
    dtypes.float32: "float_val", dtypes.float64: "double_val", dtypes.int64: "int64_val", dtypes.bool: "bool_val",
    dtypes.uint32: "uint32_val", dtypes.uint64: "uint64_val", dtypes.string: "string_val", dtypes.float16: "half_val",
    dtypes.complex64: "scomplex_val", dtypes.complex128: "dcomplex_val",
}  # fmt: skip  (every other integer type is in int_val)
_MAX_CONSTANT_BYTES = 1 << 31


def make_ndarray(tensor: Any) -> np.ndarray[Any, Any]:
    """The array of a TensorProto.

    Raises
    ------
    InvalidArgumentError
        If type, shape and content contradict each other.
    """
    try:
        dtype = dtypes.as_dtype(tensor.dtype)
    except TypeError as error:
        raise errors.InvalidArgumentError(f"tensor of an unknown type: {error}") from None
    shape = tuple(int(d.size) for d in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(d < 0 for d in shape):
        raise errors.InvalidArgumentError(f"a constant tensor must have a full shape, not {tensor.tensor_shape}.")
    count = 1
    for size in shape:
        count *= size
    if count * max(dtype.size, 1) > _MAX_CONSTANT_BYTES:
        raise errors.InvalidArgumentError(f"a constant tensor of shape {shape} and type {dtype.name} is larger than 2 GiB.")
    if tensor.tensor_content:
        if dtype.kind == "O" or len(tensor.tensor_content) != count * dtype.size:
            raise errors.InvalidArgumentError(
                f"a tensor of shape {shape} and type {dtype.name} can't have {len(tensor.tensor_content)} bytes of content."
            )
        raw = np.frombuffer(tensor.tensor_content, dtype.np_dtype.newbyteorder("<"))
        return raw.astype(dtype.np_dtype).reshape(shape)
    values: Any = list(getattr(tensor, _VALUE_FIELD.get(dtype, "int_val")))
    if dtype is dtypes.float16:
        values = np.array(values, np.uint16).view(np.float16)
    elif dtype.is_complex:
        pairs = np.array(values, dtype.real_dtype.np_dtype)
        values = pairs[0::2] + 1j * pairs[1::2]
    if len(values) > count:
        raise errors.InvalidArgumentError(f"a tensor of shape {shape} can't have {len(values)} values.")
    flat = np.empty(count, dtype.np_dtype)
    if len(values):
        flat[: len(values)] = values
        flat[len(values) :] = values[-1]  # TensorProto leaves out repetitions of the last value
    else:
        flat[:] = b"" if dtype.kind == "O" else 0
    return flat.reshape(shape)


def from_attr_value(proto: Any, kind: str | None, where: str) -> Any:
    """Python value of an AttrValue; ``kind`` is what the op type declares, None to take what is there."""
    case = proto.WhichOneof("value")
    if case is None:
        return [] if kind and kind.startswith("list(") else None
    present = {"s": "string", "i": "int", "f": "float", "b": "bool", "type": "type", "shape": "shape", "tensor": "tensor"}.get(case, case)
    if kind is not None and (kind.startswith("list(") != (case == "list") or (case != "list" and kind != present)):
        raise errors.InvalidArgumentError(f"{where} must be of kind {kind}, not {present}.")
    if case == "list":
        inner = kind[5:-1] if kind else next((k for k, f in _LIST_FIELD.items() if getattr(proto.list, f)), "string")
        return [_item(item, inner, where) for item in getattr(proto.list, _LIST_FIELD[inner])]
    if present not in _LIST_FIELD:
        raise errors.InvalidArgumentError(f"{where} has a value of kind {present!r}, which mpirt doesn't support.")
    return _item(getattr(proto, case), present, where)


def _item(item: Any, kind: str, where: str) -> Any:
    if kind == "string":
        try:
            return item.decode()
        except UnicodeDecodeError:
            return item
    if kind == "type":
        try:
            return dtypes.as_dtype(item)
        except TypeError as error:
            raise errors.InvalidArgumentError(f"{where}: {error}") from None
    if kind == "shape":
        return as_shape(item)
    return make_ndarray(item) if kind == "tensor" else item


def import_graph_def(
    graph_def: Any,
    input_map: Mapping[str, Any] | None = None,
    return_elements: Sequence[str] | None = None,
    name: str | None = None,
    op_dict: Any = None,
    producer_op_list: Any = None,
) -> list[Any] | None:
    """Add the operations of a GraphDef to the default graph.

    Parameters
    ----------
    graph_def : GraphDef message, of TensorFlow or of ``tensorboard.compat.proto``
    input_map : tensors that take the place of tensors of ``graph_def``, by name
    return_elements : names of operations and tensors of ``graph_def`` to return
    name : prefix of the new names, "import" by default; "" for none
    op_dict, producer_op_list : accepted as in TensorFlow, not used

    Returns
    -------
    The elements asked for by ``return_elements``, or None

    Raises
    ------
    InvalidArgumentError, NotFoundError
        If the content is malformed, has a cycle, or names an unknown operation type or attribute.
    """
    if not hasattr(graph_def, "node"):
        raise TypeError(f"graph_def must be a GraphDef message, not {type(graph_def).__name__}.")
    graph = get_default_graph()
    prefix = "import" if name is None else name
    mapped = {_tensor_key(k): v for k, v in (input_map or {}).items()}
    made: dict[str, Operation] = {}
    library = _Library(graph_def)
    with graph.name_scope(graph._scopes.name) if not prefix else graph.name_scope(prefix) as scope:
        exact = scope or ""
        for node in _sorted_nodes(graph_def.node, mapped):
            made[node.name] = _import_node(graph, node, made, mapped, exact, library)
    if return_elements is None:
        return None
    return [_returned(made, element, mapped) for element in return_elements]


def import_nodes(
    graph: Graph, graph_def: Any, made: dict[str, Operation], mapped: Mapping[str, Tensor], places: Sequence[str] = ()
) -> None:
    """Add nodes to ``graph`` whose inputs come before them, are in ``made`` by name, or in ``mapped`` by tensor name.

    New operations are added to ``made``. ``places`` are lines of the user's, which nodes have by number in their attribute ``AT``.

    Raises
    ------
    InvalidArgumentError, NotFoundError
        As `import_graph_def`; and if a node of that name is in ``made`` already.
    """
    library = _Library(graph_def, places)
    with graph.as_default(), graph.name_scope(None):
        for node in graph_def.node:
            if node.name in made:
                raise errors.InvalidArgumentError(f"node {node.name!r} comes twice.")
            for text in node.input:
                if _tensor_key(text) not in mapped and text.removeprefix("^").partition(":")[0] not in made:
                    raise errors.InvalidArgumentError(f"node {node.name!r} has input {text!r}, which is not there.")
            op = _import_node(graph, node, made, mapped, "", library)
            if op.name != node.name:
                raise errors.InvalidArgumentError(f"node {node.name!r} differs from another one only by case.")
            made[node.name] = op


def _tensor_key(name: str) -> str:
    return name if name.startswith("^") or ":" in name else f"{name}:0"


def _sorted_nodes(nodes: Sequence[Any], mapped: Mapping[str, Any]) -> list[Any]:
    """The nodes, producers first; otherwise in the order of the file."""
    by_name: dict[str, Any] = {}
    for node in nodes:
        if node.name in by_name:
            raise errors.InvalidArgumentError(f"GraphDef has two nodes {node.name!r}.")
        by_name[node.name] = node
    waiting: dict[str, int] = {}
    consumers: dict[str, list[str]] = {}
    for node in nodes:
        producers = set()
        for text in node.input:
            if _tensor_key(text) in mapped:
                continue
            producer = text.removeprefix("^").partition(":")[0]
            if producer not in by_name:
                raise errors.InvalidArgumentError(f"node {node.name!r} has input {text!r}, which is not in the GraphDef.")
            producers.add(producer)
        waiting[node.name] = len(producers)
        for producer in sorted(producers):
            consumers.setdefault(producer, []).append(node.name)
    names = list(by_name)
    position = {name: i for i, name in enumerate(names)}
    order, ready = [], [i for i, name in enumerate(names) if waiting[name] == 0]  # ascending: a heap
    while ready:
        done = names[heappop(ready)]
        order.append(by_name[done])
        for consumer in consumers.get(done, ()):
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                heappush(ready, position[consumer])
    if len(order) != len(by_name):
        stuck = next(name for name in names if waiting[name] > 0)
        raise errors.InvalidArgumentError(f"GraphDef has a cycle through node {stuck!r}; loops need functional while_loop bodies.")
    return order


class _Library:
    """The bodies of a GraphDef, made when a node names them; and where the user made its nodes, if that came along."""

    def __init__(self, graph_def: Any, places: Sequence[str] = ()) -> None:
        self._places = places
        self._definitions = {f.signature.name: f for f in graph_def.library.function} if hasattr(graph_def, "library") else {}
        self._made: dict[str, Function] = {}
        self._open: list[str] = []

    def frames(self, attrs: dict[str, Any]) -> tuple[tuple[str, int], ...]:
        """The user's file and line of a node; its attribute ``AT`` is taken out."""
        if self._places:
            at = attrs.pop(AT, None)
            if isinstance(at, int) and 0 <= at < len(self._places):
                file, _, line = self._places[at].rpartition(":")
                return ((file, int(line) if line.isdecimal() else 0),)
        return (("<GraphDef>", 0),)

    def function(self, name: str, where: str) -> Function:
        """The body ``name``, for the attribute ``where``.

        Raises
        ------
        NotFoundError, InvalidArgumentError
            If there is none, it is malformed, or it contains itself.
        """
        if name not in self._made:
            if name not in self._definitions:
                raise errors.NotFoundError(f"{where}: the GraphDef's library has no function {name!r}.")
            if name in self._open or len(self._open) >= _MAX_NESTING:
                raise errors.InvalidArgumentError(f"{where}: function {name!r} contains itself, or is nested too deeply.")
            self._open.append(name)
            try:
                self._made[name] = self._import(self._definitions[name])
            finally:
                self._open.pop()
        return self._made[name]

    def _import(self, definition: Any) -> Function:
        name, signature = definition.signature.name, definition.signature
        graph = FuncGraph(name, get_default_graph())
        made: dict[str, Operation] = {}
        with graph.as_default():
            inputs = [self._argument(graph, definition, i) for i in range(len(signature.input_arg))]
            given = {f"{arg.name}:0": t for arg, t in zip(signature.input_arg, inputs, strict=True)}
            for node in _sorted_nodes(definition.node_def, given):
                made[node.name] = _import_node(graph, node, made, given, "", self)
        outputs = [self._result(name, definition.ret[arg.name], made, given) for arg in signature.output_arg]
        controls = [definition.control_ret[key] for key in sorted(definition.control_ret)]
        for control in controls:
            if control not in made:
                raise errors.InvalidArgumentError(f"function {name!r} has the control output {control!r}, which is none of its nodes.")
        return graph.finish(inputs, outputs, [made[c] for c in controls])

    def _argument(self, graph: FuncGraph, definition: Any, position: int) -> Tensor:
        arg = definition.signature.input_arg[position]
        where = f"argument {arg.name!r} of function {definition.signature.name!r}"
        try:
            dtype = dtypes.as_dtype(arg.type)
            known = definition.arg_attr[position].attr if position in definition.arg_attr else {}
            shapes = from_attr_value(known["_output_shapes"], "list(shape)", where) if "_output_shapes" in known else []
        except (TypeError, ValueError) as error:
            raise errors.InvalidArgumentError(f"{where}: {error}") from None
        return graph.add_input(dtype.ref if arg.is_ref else dtype, shapes[0] if shapes else None, arg.name)

    def _result(self, name: str, text: str, made: Mapping[str, Operation], given: Mapping[str, Tensor]) -> Tensor:
        if _tensor_key(text) in given:
            return given[_tensor_key(text)]
        producer, _, index = text.partition(":")
        if producer not in made:
            raise errors.InvalidArgumentError(f"function {name!r} returns {text!r}, which is none of its nodes.")
        return _output(made[producer], index, f"function {name!r}", text)


_MAX_NESTING = 100


def _output(op: Operation, index: str, where: str, text: str) -> Tensor:
    """Output ``index`` of ``op``: a number, or ``argument:number`` as nodes of a function have it."""
    name, _, number = index.rpartition(":")
    start, stop = 0, len(op.outputs)
    if name:
        places = arg_ranges(op.definition.outputs, op.attrs).get(name, slice(0, 0))
        start, stop = places.start, places.stop
    if (number and not number.isdigit()) or start + int(number or 0) >= stop:
        what = f"{op.name!r} has {len(op.outputs)} output(s)"
        raise errors.InvalidArgumentError(f"{where} has input {text!r}, but {what}.")
    return op.outputs[start + int(number or 0)]


def _import_node(
    graph: Graph, node: Any, made: Mapping[str, Operation], mapped: Mapping[str, Any], prefix: str, library: _Library
) -> Operation:
    where = f"node {node.name!r} ({node.op})"
    try:
        definition = op_def(node.op)
    except errors.NotFoundError as error:
        raise errors.NotFoundError(f"{where}: {error.message}", hint=error.hint) from None
    inputs: list[Tensor] = []
    controls: list[Operation] = []
    for text in node.input:
        if _tensor_key(text) in mapped:
            target = mapped[_tensor_key(text)]
            if text.startswith("^"):
                controls.append(getattr(target, "op", target))
            else:
                inputs.append(graph.as_graph_element(target, allow_operation=False))  # type: ignore[arg-type]
        elif text.startswith("^"):
            controls.append(made[text[1:]])
        else:
            producer, _, index = text.partition(":")
            inputs.append(_output(made[producer], index, where, text))
    attrs = _import_attrs(definition, node, where, prefix, library)
    colocated = attrs.pop("_class", None)
    frames = library.frames(attrs)
    try:
        with graph.control_dependencies(controls), graph.device(node.device):
            op = graph.create_op(node.op, inputs, attrs, f"{prefix}{node.name}/", frames=frames)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError) as error:
        raise errors.InvalidArgumentError(f"{where} can't be imported: {error}") from None
    if colocated:
        op.set_attr("_class", colocated)
    return op


def _import_attrs(definition: OpDef, node: Any, where: str, prefix: str, library: _Library) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    for key in sorted(node.attr):
        if key == "_class":
            groups = from_attr_value(node.attr[key], "list(string)", f"{where}: attribute {key!r}")
            attrs[key] = [f"loc:@{prefix}{g[5:]}" if isinstance(g, str) and g.startswith("loc:@") else g for g in groups]
        elif key.startswith("_"):
            if key != "_output_shapes":
                attrs[key] = from_attr_value(node.attr[key], None, f"{where}: attribute {key!r}")
        elif key not in definition.attrs:
            raise errors.InvalidArgumentError(f"{where} has the attribute {key!r}; its type has {sorted(definition.attrs)}.")
        elif definition.attrs[key].kind == "func" and node.attr[key].WhichOneof("value") == "func":
            attrs[key] = library.function(node.attr[key].func.name, f"{where}: attribute {key!r}")
        else:
            attrs[key] = from_attr_value(node.attr[key], definition.attrs[key].kind, f"{where}: attribute {key!r}")
    return attrs


def _returned(made: Mapping[str, Operation], element: str, mapped: Mapping[str, Any]) -> Any:
    if _tensor_key(element) in mapped:
        return mapped[_tensor_key(element)]
    op_name, colon, index = element.partition(":")
    if op_name not in made:
        raise ValueError(f"Requested return element {element!r} not found in graph_def.")
    if not colon:
        return made[op_name]
    if not index.isdigit() or int(index) >= len(made[op_name].outputs):
        raise ValueError(f"Requested return element {element!r} not found in graph_def.")
    return made[op_name].outputs[int(index)]
