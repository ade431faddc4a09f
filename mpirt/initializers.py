"""``tf.initializers``: initial values of variables, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.init_ops import (
    constant_initializer as constant,
)  # fmt: skip
from mpirt.ops.init_ops import (
    glorot_normal_initializer as glorot_normal,
)
from mpirt.ops.init_ops import (
    glorot_uniform_initializer as glorot_uniform,
)
from mpirt.ops.init_ops import (
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
)
from mpirt.ops.init_ops import (
    identity_initializer as identity,
)
from mpirt.ops.init_ops import (
    ones_initializer as ones,
)
from mpirt.ops.init_ops import (
    orthogonal_initializer as orthogonal,
)
from mpirt.ops.init_ops import (
    random_normal_initializer as random_normal,
)
from mpirt.ops.init_ops import (
    random_uniform_initializer as random_uniform,
)
from mpirt.ops.init_ops import (
    truncated_normal_initializer as truncated_normal,
)
from mpirt.ops.init_ops import uniform_unit_scaling_initializer as uniform_unit_scaling
from mpirt.ops.init_ops import (
    variance_scaling_initializer as variance_scaling,
)
from mpirt.ops.init_ops import (
    zeros_initializer as zeros,
)
from mpirt.ops.variables import global_variables_initializer as global_variables
from mpirt.ops.variables import local_variables_initializer as local_variables
from mpirt.ops.variables import variables_initializer as variables

__all__ = [
    "constant", "global_variables", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "identity", "lecun_normal",
    "lecun_uniform", "local_variables", "ones", "orthogonal", "random_normal", "random_uniform", "truncated_normal",
    "uniform_unit_scaling", "variables", "variance_scaling", "zeros",
]  # fmt: skip
