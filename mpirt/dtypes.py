"""Data types: TensorFlow's names and enum numbers over numpy's dtypes.

Guarantee: one ``DType`` object per type, so ``is`` compares; a reference type (``float32_ref``) is a separate object
with the same numpy dtype. Strings are numpy object arrays of ``bytes``.
Source of the numbers: tensorflow/core/framework/types.proto (``tensorboard.compat.proto.types_pb2``).
"""

from __future__ import annotations

from builtins import bool as _bool
from typing import Any

import numpy as np

_REF_OFFSET = 100  # types.proto: DT_FLOAT_REF = DT_FLOAT + 100


class DType:
    """Type of a tensor's elements. Use the module's objects (``float32``) or ``as_dtype``."""

    __slots__ = ("name", "enum", "as_numpy_dtype", "np_dtype", "_ref", "_base", "size", "kind")

    def __init__(self, name: str, enum: int, np_dtype: Any, base: DType | None = None) -> None:
        self.name = name
        self.enum = enum
        self.np_dtype: np.dtype[Any] = np.dtype(np_dtype)
        self.as_numpy_dtype: Any = self.np_dtype.type
        self.size = self.np_dtype.itemsize if name != "string" else 0
        self.kind: str = self.np_dtype.kind  # numpy's letter: b i u f c O
        self._base = base
        self._ref: DType | None = None
        if base is None and enum != 0:
            self._ref = DType(name + "_ref", enum + _REF_OFFSET, np_dtype, self)

    @property
    def as_datatype_enum(self) -> int:
        """Number in types.proto."""
        return self.enum

    @property
    def base_dtype(self) -> DType:
        """The type without reference."""
        return self._base or self

    @property
    def is_ref(self) -> _bool:
        """Whether this is a reference type (a variable's own output)."""
        return self._base is not None

    @property
    def ref(self) -> DType:
        """The reference type of this type."""
        return self if self._ref is None else self._ref

    @property
    def is_floating(self) -> _bool:
        """Real floating point."""
        return self.kind == "f"

    @property
    def is_complex(self) -> _bool:
        """Complex floating point."""
        return self.kind == "c"

    @property
    def is_integer(self) -> _bool:
        """Signed or unsigned integer, not bool."""
        return self.kind in "iu"

    @property
    def is_unsigned(self) -> _bool:
        """Unsigned integer."""
        return self.kind == "u"

    @property
    def is_bool(self) -> _bool:
        """Boolean."""
        return self.kind == "b"

    @property
    def is_numpy_compatible(self) -> _bool:
        """Always true; TensorFlow has types of which this isn't so."""
        return True

    @property
    def min(self) -> Any:
        """Smallest finite value."""
        if self.is_bool:
            return False
        return np.finfo(self.np_dtype).min if self.kind in "fc" else np.iinfo(self.np_dtype).min

    @property
    def max(self) -> Any:
        """Largest finite value."""
        if self.is_bool:
            return True
        return np.finfo(self.np_dtype).max if self.kind in "fc" else np.iinfo(self.np_dtype).max

    @property
    def real_dtype(self) -> DType:
        """The type of the real part."""
        return {"complex64": float32, "complex128": float64}.get(self.base_dtype.name, self.base_dtype)

    def is_compatible_with(self, other: Any) -> _bool:
        """Whether a tensor of ``other`` can be used where this type is expected."""
        return self.base_dtype is as_dtype(other).base_dtype

    def __eq__(self, other: object) -> _bool:
        if other is None:
            return False
        if isinstance(other, DType):
            return self is other
        try:
            return self is as_dtype(other)
        except TypeError:
            return False

    def __hash__(self) -> int:
        return self.enum

    def __repr__(self) -> str:
        return f"mpirt.{self.name}"

    def __reduce__(self) -> Any:
        return as_dtype, (self.name,)


float32 = DType("float32", 1, np.float32)
float64 = DType("float64", 2, np.float64)
int32 = DType("int32", 3, np.int32)
uint8 = DType("uint8", 4, np.uint8)
int16 = DType("int16", 5, np.int16)
int8 = DType("int8", 6, np.int8)
string = DType("string", 7, np.object_)
complex64 = DType("complex64", 8, np.complex64)
int64 = DType("int64", 9, np.int64)
bool = DType("bool", 10, np.bool_)  # noqa: A001  (TensorFlow's public name)
uint16 = DType("uint16", 17, np.uint16)
complex128 = DType("complex128", 18, np.complex128)
float16 = DType("float16", 19, np.float16)
uint32 = DType("uint32", 22, np.uint32)
uint64 = DType("uint64", 23, np.uint64)
# A handle names a resource on its task; its value is the resource's name and never crosses devices.
resource = DType("resource", 20, np.object_)
half = float16
double = float64

ALL = (
    float16, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool, complex64, complex128,
    string, resource,
)  # fmt: skip
FLOATING = (float16, float32, float64)
INTEGER = (int8, int16, int32, int64, uint8, uint16, uint32, uint64)
REAL = FLOATING + INTEGER
COMPLEX = (complex64, complex128)
NUMERIC = REAL + COMPLEX
INDEX = (int32, int64)

_BY_NAME = {t.name: t for t in ALL} | {"half": float16, "double": float64, "float": float32}
_BY_NAME |= {t.name + "_ref": t.ref for t in ALL}
_BY_ENUM = {t.enum: t for t in ALL} | {t.enum + _REF_OFFSET: t.ref for t in ALL}
_BY_NUMPY = {t.np_dtype: t for t in ALL if t is not resource}
_BY_PYTHON: dict[Any, DType] = {float: float32, int: int64, complex: complex128, str: string, bytes: string, object: string}


def as_dtype(type_value: Any) -> DType:
    """The ``DType`` of a DType, name, enum number, numpy dtype or Python type.

    Raises
    ------
    TypeError
        If ``type_value`` names no type that mpirt has.
    """
    if isinstance(type_value, DType):
        return type_value
    if isinstance(type_value, str) and type_value in _BY_NAME:
        return _BY_NAME[type_value]
    if isinstance(type_value, int) and type_value in _BY_ENUM:
        return _BY_ENUM[type_value]
    if isinstance(type_value, type) and type_value in _BY_PYTHON:
        return _BY_PYTHON[type_value]
    if type_value is not None:
        try:
            dtype = np.dtype(type_value)
        except TypeError:
            dtype = None
        if dtype is not None:
            if dtype.kind in "SU":
                return string
            if dtype in _BY_NUMPY:
                return _BY_NUMPY[dtype]
    raise TypeError(f"{type_value!r} is no data type of mpirt; there are {', '.join(t.name for t in ALL)}.")
