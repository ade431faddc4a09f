"""``tf.flags``: command line flags of TensorFlow-1 scripts. They are absl's, under TensorFlow's argument names as well."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from absl import flags as _absl
from absl.flags import (
    FLAGS,
    Flag,
    FlagValues,
    adopt_module_key_flags,
    declare_key_flag,
    mark_flag_as_required,
    mark_flags_as_mutual_exclusive,
    mark_flags_as_required,
    multi_flags_validator,
    register_validator,
    validator,
)

__all__ = [
    "DEFINE_bool", "DEFINE_boolean", "DEFINE_enum", "DEFINE_float", "DEFINE_integer", "DEFINE_list", "DEFINE_multi_float",
    "DEFINE_multi_integer", "DEFINE_multi_string", "DEFINE_string", "FLAGS", "Flag", "FlagValues", "adopt_module_key_flags",
    "declare_key_flag", "mark_flag_as_required", "mark_flags_as_mutual_exclusive", "mark_flags_as_required",
    "multi_flags_validator", "register_validator", "validator",
]  # fmt: skip

_absl.disclaim_key_flags()  # --help shows a flag under the script that defines it, not under this module
_ABSL_NAMES = {"flag_name": "name", "default_value": "default", "docstring": "help"}


def _taking_tensorflows_names(define: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(define)
    def define_flag(*args: Any, **kwargs: Any) -> Any:
        return define(*args, **{_ABSL_NAMES.get(key, key): value for key, value in kwargs.items()})

    return define_flag


DEFINE_string = _taking_tensorflows_names(_absl.DEFINE_string)
DEFINE_boolean = _taking_tensorflows_names(_absl.DEFINE_boolean)
DEFINE_bool = DEFINE_boolean
DEFINE_float = _taking_tensorflows_names(_absl.DEFINE_float)
DEFINE_integer = _taking_tensorflows_names(_absl.DEFINE_integer)
DEFINE_enum = _taking_tensorflows_names(_absl.DEFINE_enum)
DEFINE_list = _taking_tensorflows_names(_absl.DEFINE_list)
DEFINE_multi_string = _taking_tensorflows_names(_absl.DEFINE_multi_string)
DEFINE_multi_integer = _taking_tensorflows_names(_absl.DEFINE_multi_integer)
DEFINE_multi_float = _taking_tensorflows_names(_absl.DEFINE_multi_float)
