"""mpirt: a graph with device blocks, executed by the ranks of one ``mpirun``.

``import mpirt as tf`` is the promise: names and arguments follow ``tensorflow.compat.v1`` wherever mpirt has the feature.
What is mpirt's own: ``cluster`` and ``RankTable`` (who runs where), and the keyword arguments of ``Session``.
Importing starts nothing: no MPI, no GPU context, no thread.
"""

from __future__ import annotations

from tensorboard.compat.proto.config_pb2 import ConfigProto, GPUOptions, GraphOptions, RunMetadata, RunOptions
from tensorboard.compat.proto.graph_pb2 import GraphDef

from mpirt import app, collective, debugging, errors, flags, initializers, linalg, logging, losses, math, nn, queue, random, sparse, train
from mpirt import control_flow_gradients as control_flow_gradients  # registers the gradients of operations with bodies
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.cluster.rank_table import RankTable
from mpirt.distributed.cluster import Cluster, cluster
from mpirt.dtypes import (
    DType,
    as_dtype,
    bool,
    complex64,
    complex128,
    double,
    float16,
    float32,
    float64,
    half,
    int8,
    int16,
    int32,
    int64,
    resource,
    string,
    uint8,
    uint16,
    uint32,
    uint64,
)  # fmt: skip
from mpirt.errors import OpError
from mpirt.gradients import (
    AggregationMethod,
    NoGradient,
    NotDifferentiable,
    RegisterGradient,
    UnconnectedGradients,
    gradients,
    hessians,
    no_gradient,
)  # fmt: skip
from mpirt.graph.graph import (
    Graph,
    GraphKeys,
    Operation,
    Tensor,
    add_to_collection,
    add_to_collections,
    colocate_with,
    container,
    control_dependencies,
    device,
    get_collection,
    get_collection_ref,
    get_default_graph,
    name_scope,
    reset_default_graph,
)  # fmt: skip
from mpirt.graph.graph_def import import_graph_def, make_ndarray
from mpirt.graph.shapes import Dimension, TensorShape
from mpirt.ops.apply import constant, convert_to_tensor, is_tensor
from mpirt.ops.array_ops import (
    expand_dims,
    fill,
    invert_permutation,
    matrix_transpose,
    ones,
    ones_like,
    rank,
    reshape,
    shape,
    shape_n,
    size,
    squeeze,
    transpose,
    zeros,
    zeros_like,
)  # fmt: skip
from mpirt.ops.cast_ops import bitcast, cast, saturate_cast, to_double, to_float, to_int32, to_int64
from mpirt.ops.check_ops import (
    assert_equal,
    assert_greater,
    assert_greater_equal,
    assert_integer,
    assert_less,
    assert_less_equal,
    assert_near,
    assert_negative,
    assert_non_negative,
    assert_non_positive,
    assert_none_equal,
    assert_positive,
    assert_rank,
    assert_rank_at_least,
    assert_rank_in,
    assert_same_float_dtype,
    assert_scalar,
    assert_type,
    is_numeric_tensor,
)  # fmt: skip
from mpirt.ops.clip_ops import clip_by_average_norm, clip_by_global_norm, clip_by_norm, clip_by_value, global_norm, norm
from mpirt.ops.complex_ops import angle, complex, conj, imag, real, to_complex64, to_complex128
from mpirt.ops.concat_ops import concat, parallel_stack, split, stack, unstack
from mpirt.ops.cond_ops import case, cond, switch_case
from mpirt.ops.control_flow_ops import Assert, group, no_op, tuple, with_dependencies
from mpirt.ops.cumulative_ops import cumprod, cumsum, cumulative_logsumexp
from mpirt.ops.data_flow_ops import FIFOQueue, PaddingFIFOQueue, PriorityQueue, QueueBase, RandomShuffleQueue
from mpirt.ops.gather_ops import (
    batch_gather,
    boolean_mask,
    gather,
    gather_nd,
    scatter_nd,
    tensor_scatter_add,
    tensor_scatter_nd_add,
    tensor_scatter_nd_sub,
    tensor_scatter_nd_update,
    tensor_scatter_sub,
    tensor_scatter_update,
)  # fmt: skip
from mpirt.ops.getitem import newaxis
from mpirt.ops.identity_ops import (
    check_numerics,
    ensure_shape,
    guarantee_const,
    identity,
    identity_n,
    placeholder,
    placeholder_with_default,
    stop_gradient,
)  # fmt: skip
from mpirt.ops.indexed_slices import IndexedSlices, IndexedSlicesValue
from mpirt.ops.init_ops import (
    constant_initializer,
    glorot_normal_initializer,
    glorot_uniform_initializer,
    ones_initializer,
    orthogonal_initializer,
    random_normal_initializer,
    random_uniform_initializer,
    truncated_normal_initializer,
    uniform_unit_scaling_initializer,
    variance_scaling_initializer,
    zeros_initializer,
)  # fmt: skip
from mpirt.ops.logging_ops import Print
from mpirt.ops.logic_ops import (
    equal,
    greater,
    greater_equal,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    not_equal,
)  # fmt: skip
from mpirt.ops.math_ops import (
    accumulate_n,
    add,
    add_n,
    atan2,
    div,
    div_no_nan,
    divide,
    floor_div,
    floordiv,
    floormod,
    maximum,
    minimum,
    mod,
    multiply,
    multiply_no_nan,
    pow,
    realdiv,
    scalar_mul,
    squared_difference,
    subtract,
    truediv,
    truncatediv,
    truncatemod,
    xdivy,
    xlog1py,
    xlogy,
)  # fmt: skip
from mpirt.ops.matmul_ops import matmul, tensordot
from mpirt.ops.matrix_diag_ops import matrix_band_part, matrix_diag, matrix_diag_part, matrix_set_diag
from mpirt.ops.partition_ops import dynamic_partition, dynamic_stitch, setdiff1d, unique, unique_with_counts
from mpirt.ops.partitioned_variables import (
    fixed_size_partitioner,
    min_max_variable_partitioner,
    variable_axis_size_partitioner,
)
from mpirt.ops.random_ops import categorical, multinomial, random_normal, random_shuffle, random_uniform, truncated_normal
from mpirt.ops.random_seed import get_seed, set_random_seed
from mpirt.ops.range_ops import diag, diag_part, eye, lin_space, linspace, meshgrid, one_hot, range, sequence_mask
from mpirt.ops.reduction_ops import (
    arg_max,
    arg_min,
    argmax,
    argmin,
    count_nonzero,
    reduce_all,
    reduce_any,
    reduce_euclidean_norm,
    reduce_logsumexp,
    reduce_max,
    reduce_mean,
    reduce_min,
    reduce_prod,
    reduce_std,
    reduce_sum,
    reduce_variance,
)  # fmt: skip
from mpirt.ops.scatter_state_ops import (
    scatter_add,
    scatter_div,
    scatter_max,
    scatter_min,
    scatter_mul,
    scatter_nd_add,
    scatter_nd_sub,
    scatter_nd_update,
    scatter_sub,
    scatter_update,
)  # fmt: skip
from mpirt.ops.script_ops import py_func
from mpirt.ops.segment_ops import (
    bincount,
    segment_max,
    segment_mean,
    segment_min,
    segment_prod,
    segment_sum,
    unsorted_segment_max,
    unsorted_segment_mean,
    unsorted_segment_min,
    unsorted_segment_prod,
    unsorted_segment_sqrt_n,
    unsorted_segment_sum,
)  # fmt: skip
from mpirt.ops.select_ops import where, where_v2
from mpirt.ops.slice_ops import slice, strided_slice
from mpirt.ops.sort_ops import argsort, sort
from mpirt.ops.sparse_ops import (
    sparse_fill_empty_rows,
    sparse_mask,
    sparse_reorder,
    sparse_reshape,
    sparse_retain,
    sparse_tensor_dense_matmul,
    sparse_tensor_to_dense,
    sparse_to_dense,
)
from mpirt.ops.sparse_segment_ops import sparse_segment_mean, sparse_segment_sqrt_n, sparse_segment_sum
from mpirt.ops.sparse_tensor import (
    SparseTensor,
    SparseTensorValue,
    convert_to_tensor_or_sparse_tensor,
    sparse_placeholder,
)
from mpirt.ops.special_ops import digamma, erf, erfc, erfinv, lgamma, ndtri, polygamma, zeta
from mpirt.ops.state_ops import assign, assign_add, assign_sub, count_up_to
from mpirt.ops.tile_ops import (
    broadcast_dynamic_shape,
    broadcast_static_shape,
    broadcast_to,
    pad,
    reverse,
    reverse_sequence,
    reverse_v2,
    tile,
)  # fmt: skip
from mpirt.ops.unary_ops import (
    abs,
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atanh,
    ceil,
    cos,
    cosh,
    exp,
    expm1,
    floor,
    is_finite,
    is_inf,
    is_nan,
    log,
    log1p,
    log_sigmoid,
    negative,
    reciprocal,
    rint,
    round,
    rsqrt,
    sigmoid,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    tan,
    tanh,
)  # fmt: skip
from mpirt.ops.variable_scope import (
    AUTO_REUSE,
    VariableScope,
    create_partitioned_variables,
    get_local_variable,
    get_variable,
    get_variable_scope,
    no_regularizer,
    variable_op_scope,
    variable_scope,
)  # fmt: skip
from mpirt.ops.variables import (
    Variable,
    VariableAggregation,
    VariableSynchronization,
    all_variables,
    assert_variables_initialized,
    global_variables,
    global_variables_initializer,
    initialize_all_variables,
    initialize_local_variables,
    initialize_variables,
    is_variable_initialized,
    local_variables,
    local_variables_initializer,
    model_variables,
    moving_average_variables,
    report_uninitialized_variables,
    trainable_variables,
    variables_initializer,
)  # fmt: skip
from mpirt.ops.while_ops import while_loop
from mpirt.session import InteractiveSession, Session, get_default_session
from mpirt.v2_switches import (
    disable_eager_execution,
    disable_resource_variables,
    disable_v2_behavior,
    enable_resource_variables,
    executing_eagerly,
    resource_variables_enabled,
)  # fmt: skip
from mpirt.version import __version__

__all__ = [
    "AUTO_REUSE", "AggregationMethod", "Assert", "Cluster", "ConfigProto", "DType", "DeviceSpec", "Dimension", "FIFOQueue",
    "GPUOptions", "Graph", "GraphDef", "GraphKeys", "GraphOptions", "IndexedSlices", "IndexedSlicesValue",
    "InteractiveSession", "NoGradient", "NotDifferentiable", "OpError", "Operation", "PaddingFIFOQueue", "Print",
    "PriorityQueue", "QueueBase", "RandomShuffleQueue", "RankTable", "RegisterGradient", "RunMetadata", "RunOptions",
    "Session", "SparseTensor", "SparseTensorValue", "Tensor", "TensorShape", "UnconnectedGradients", "Variable",
    "VariableAggregation", "VariableScope", "VariableSynchronization", "__version__", "abs", "accumulate_n", "acos",
    "acosh", "add", "add_n", "add_to_collection", "add_to_collections", "all_variables", "angle", "app", "arg_max",
    "arg_min", "argmax", "argmin", "argsort", "as_dtype", "asin", "asinh", "assert_equal", "assert_greater",
    "assert_greater_equal", "assert_integer", "assert_less", "assert_less_equal", "assert_near", "assert_negative",
    "assert_non_negative", "assert_non_positive", "assert_none_equal", "assert_positive", "assert_rank",
    "assert_rank_at_least", "assert_rank_in", "assert_same_float_dtype", "assert_scalar", "assert_type",
    "assert_variables_initialized", "assign", "assign_add", "assign_sub", "atan", "atan2", "atanh", "batch_gather",
    "bincount", "bitcast", "bool", "boolean_mask", "broadcast_dynamic_shape", "broadcast_static_shape", "broadcast_to",
    "case", "cast", "categorical", "ceil", "check_numerics", "clip_by_average_norm", "clip_by_global_norm", "clip_by_norm",
    "clip_by_value", "cluster", "collective", "colocate_with", "complex", "complex128", "complex64", "concat", "cond", "conj", "constant",
    "constant_initializer", "container", "control_dependencies", "convert_to_tensor", "convert_to_tensor_or_sparse_tensor",
    "cos", "cosh", "count_nonzero", "count_up_to", "create_partitioned_variables", "cumprod", "cumsum",
    "cumulative_logsumexp", "debugging", "device", "diag", "diag_part", "digamma", "disable_eager_execution",
    "disable_resource_variables", "disable_v2_behavior", "div", "div_no_nan", "divide", "double", "dynamic_partition",
    "dynamic_stitch", "enable_resource_variables", "ensure_shape", "equal", "erf", "erfc", "erfinv", "errors",
    "executing_eagerly", "exp", "expand_dims", "expm1", "eye", "fill", "fixed_size_partitioner", "flags", "float16",
    "float32", "float64", "floor", "floor_div", "floordiv", "floormod", "gather", "gather_nd", "get_collection",
    "get_collection_ref", "get_default_graph", "get_default_session", "get_local_variable", "get_seed", "get_variable",
    "get_variable_scope", "global_norm", "global_variables", "global_variables_initializer", "glorot_normal_initializer",
    "glorot_uniform_initializer", "gradients", "greater", "greater_equal", "group", "guarantee_const", "half", "hessians",
    "identity", "identity_n", "imag", "import_graph_def", "initialize_all_variables", "initialize_local_variables",
    "initialize_variables", "initializers", "int16", "int32", "int64", "int8", "invert_permutation", "is_finite", "is_inf",
    "is_nan", "is_numeric_tensor", "is_tensor", "is_variable_initialized", "less", "less_equal", "lgamma", "lin_space",
    "linalg", "linspace", "local_variables", "local_variables_initializer", "log", "log1p", "log_sigmoid", "logging",
    "logical_and", "logical_not", "logical_or", "logical_xor", "losses", "make_ndarray", "math", "matmul",
    "matrix_band_part", "matrix_diag", "matrix_diag_part", "matrix_set_diag", "matrix_transpose", "maximum", "meshgrid",
    "min_max_variable_partitioner", "minimum", "mod", "model_variables", "moving_average_variables", "multinomial",
    "multiply", "multiply_no_nan", "name_scope", "ndtri", "negative", "newaxis", "nn", "no_gradient", "no_op",
    "no_regularizer", "norm", "not_equal", "one_hot", "ones", "ones_initializer", "ones_like", "orthogonal_initializer",
    "pad", "parallel_stack", "placeholder", "placeholder_with_default", "polygamma", "pow", "py_func", "queue", "random",
    "random_normal", "random_normal_initializer", "random_shuffle", "random_uniform", "random_uniform_initializer", "range",
    "rank", "real", "realdiv", "reciprocal", "reduce_all", "reduce_any", "reduce_euclidean_norm", "reduce_logsumexp",
    "reduce_max", "reduce_mean", "reduce_min", "reduce_prod", "reduce_std", "reduce_sum", "reduce_variance",
    "report_uninitialized_variables", "reset_default_graph", "reshape", "resource", "resource_variables_enabled", "reverse",
    "reverse_sequence", "reverse_v2", "rint", "round", "rsqrt", "saturate_cast", "scalar_mul", "scatter_add", "scatter_div",
    "scatter_max", "scatter_min", "scatter_mul", "scatter_nd", "scatter_nd_add", "scatter_nd_sub", "scatter_nd_update",
    "scatter_sub", "scatter_update", "segment_max", "segment_mean", "segment_min", "segment_prod", "segment_sum",
    "sequence_mask", "set_random_seed", "setdiff1d", "shape", "shape_n", "sigmoid", "sign", "sin", "sinh", "size", "slice",
    "sort", "sparse", "sparse_fill_empty_rows", "sparse_mask", "sparse_placeholder", "sparse_reorder", "sparse_reshape",
    "sparse_retain", "sparse_segment_mean", "sparse_segment_sqrt_n", "sparse_segment_sum", "sparse_tensor_dense_matmul",
    "sparse_tensor_to_dense", "sparse_to_dense", "split", "sqrt", "square", "squared_difference", "squeeze", "stack",
    "stop_gradient", "strided_slice", "string", "subtract", "switch_case", "tan", "tanh", "tensor_scatter_add",
    "tensor_scatter_nd_add", "tensor_scatter_nd_sub", "tensor_scatter_nd_update", "tensor_scatter_sub",
    "tensor_scatter_update", "tensordot", "tile", "to_complex128", "to_complex64", "to_double", "to_float", "to_int32",
    "to_int64", "train", "trainable_variables", "transpose", "truediv", "truncated_normal", "truncated_normal_initializer",
    "truncatediv", "truncatemod", "tuple", "uint16", "uint32", "uint64", "uint8", "uniform_unit_scaling_initializer",
    "unique", "unique_with_counts", "unsorted_segment_max", "unsorted_segment_mean", "unsorted_segment_min",
    "unsorted_segment_prod", "unsorted_segment_sqrt_n", "unsorted_segment_sum", "unstack", "variable_axis_size_partitioner",
    "variable_op_scope", "variable_scope", "variables_initializer", "variance_scaling_initializer", "where", "where_v2",
    "while_loop", "with_dependencies", "xdivy", "xlog1py", "xlogy", "zeros", "zeros_initializer", "zeros_like", "zeta",
]  # fmt: skip
