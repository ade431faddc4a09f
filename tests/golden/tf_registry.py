"""What TensorFlow's own registry says: op definitions and the signatures of its public functions.

Owns: the lists of op types and public names that mpirt follows, and their translation to plain JSON.
Used by make_tf_golden.py; needs an environment with tensorflow-cpu.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from tests.golden.tf_case import words

# Op types of the operations section, their gradients, and the ops that optimizers add.
OP_TYPES = words("""
Const Placeholder PlaceholderWithDefault PlaceholderV2 Identity IdentityN NoOp StopGradient PreventGradient Snapshot
Variable VariableV2 TemporaryVariable DestroyTemporaryVariable Assign AssignAdd AssignSub IsVariableInitialized CountUpTo
VarHandleOp ReadVariableOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp VarIsInitializedOp VariableShape
DestroyResourceOp _VarHandlesOp _ReadVariablesOp
ScatterUpdate ScatterAdd ScatterSub ScatterMul ScatterDiv ScatterMin ScatterMax
ResourceScatterUpdate ResourceScatterAdd ResourceScatterSub ResourceScatterMul ResourceScatterDiv ResourceScatterMin
ResourceScatterMax ResourceGather ResourceGatherNd ScatterNd ScatterNdUpdate ScatterNdAdd ScatterNdSub
ResourceScatterNdUpdate ResourceScatterNdAdd ResourceScatterNdSub TensorScatterUpdate TensorScatterAdd TensorScatterSub
ResourceStridedSliceAssign StridedSliceAssign
Neg Abs Sign Exp Log Log1p Expm1 Sqrt Rsqrt Square Reciprocal Inv Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh
Erf Erfc Erfinv Ndtri Lgamma Digamma Floor Ceil Round Rint Sigmoid Tanh Softplus Softsign Relu Relu6 Elu Selu LeakyRelu
IsNan IsInf IsFinite Invert OnesLike ZerosLike LogicalNot Conj Real Imag Complex Angle ComplexAbs Bitcast
BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift Polygamma Zeta Igamma Igammac Betainc NextAfter
Add AddV2 Sub Mul MulNoNan Div RealDiv TruncateDiv FloorDiv Mod FloorMod TruncateMod Pow Maximum Minimum
SquaredDifference Atan2 DivNoNan Xdivy Xlogy Xlog1py
Less LessEqual Greater GreaterEqual Equal NotEqual ApproximateEqual LogicalAnd LogicalOr
AddN AccumulateNV2 MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Cross Einsum SparseMatMul
Sum Mean Prod Max Min Any All EuclideanNorm ArgMax ArgMin Cumsum Cumprod CumulativeLogsumexp Bincount DenseBincount
SegmentSum SegmentMean SegmentProd SegmentMin SegmentMax UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin
UnsortedSegmentProd SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN SparseSegmentSumGrad SparseSegmentMeanGrad
SparseSegmentSqrtNGrad SparseSegmentSumWithNumSegments SparseSegmentMeanWithNumSegments
SparseSegmentSqrtNWithNumSegments Range LinSpace
Cast Reshape Transpose ConjugateTranspose ExpandDims Squeeze Concat ConcatV2 ConcatOffset Pack Unpack Split SplitV Slice
StridedSlice StridedSliceGrad Gather GatherV2 GatherNd OneHot Tile TileGrad Pad PadV2 MirrorPad MirrorPadGrad Fill
Reverse ReverseV2 ReverseSequence Shape ShapeN Size Rank Where Select SelectV2 BroadcastTo BroadcastArgs
BroadcastGradientArgs InvertPermutation Unique UniqueV2 UniqueWithCounts ListDiff DynamicPartition DynamicStitch
ParallelDynamicStitch Diag DiagPart MatrixDiag MatrixDiagV2 MatrixDiagV3 MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3
MatrixSetDiag MatrixSetDiagV3 MatrixBandPart EditDistance ImmutableConst
SpaceToDepth DepthToSpace SpaceToBatchND BatchToSpaceND QuantizeAndDequantizeV2 DeepCopy InplaceUpdate EnsureShape
GuaranteeConst Empty CheckNumerics CheckNumericsV2
Softmax LogSoftmax SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits BiasAdd BiasAddV1 BiasAddGrad L2Loss
InTopK InTopKV2 TopK TopKV2 NthElement LRN ClipByValue Searchsorted UpperBound LowerBound
Assert Print PrintV2 PyFunc PyFuncStateless EagerPyFunc StringFormat AsString StringJoin ReduceJoin StringToNumber
StringToHashBucket StringToHashBucketFast Substr StringSplit StringLength StringLower StringUpper DecodeRaw
RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal RandomShuffle ParameterizedTruncatedNormal Multinomial
RandomGamma RandomPoisson RandomPoissonV2 RandomCrop StatelessRandomUniform StatelessRandomNormal
StatelessTruncatedNormal StatelessRandomUniformInt
ReluGrad Relu6Grad EluGrad SeluGrad LeakyReluGrad SigmoidGrad TanhGrad SoftplusGrad SoftsignGrad SqrtGrad RsqrtGrad
ReciprocalGrad InvGrad IgammaGradA
Switch Merge Enter Exit NextIteration LoopCond ControlTrigger RefSwitch RefMerge RefEnter RefExit RefNextIteration
RefIdentity RefSelect Abort
ApplyGradientDescent ApplyMomentum ApplyAdagrad ApplyAdagradV2 ApplyAdam ApplyRMSProp ApplyCenteredRMSProp ApplyAdadelta
ApplyFtrl ApplyFtrlV2 ApplyProximalGradientDescent ApplyProximalAdagrad ApplyAdagradDA ApplyAdaMax ApplyPowerSign
ApplyAddSign
ResourceApplyGradientDescent ResourceApplyMomentum ResourceApplyKerasMomentum ResourceApplyAdagrad
ResourceApplyAdagradV2 ResourceApplyAdam ResourceApplyAdamWithAmsgrad ResourceApplyRMSProp
ResourceApplyCenteredRMSProp ResourceApplyAdadelta ResourceApplyFtrl ResourceApplyFtrlV2
ResourceApplyProximalGradientDescent ResourceApplyProximalAdagrad ResourceApplyAdagradDA ResourceApplyAdaMax
SparseApplyMomentum SparseApplyAdagrad SparseApplyAdagradV2 SparseApplyRMSProp SparseApplyCenteredRMSProp
SparseApplyAdadelta SparseApplyFtrl SparseApplyFtrlV2 SparseApplyProximalGradientDescent SparseApplyProximalAdagrad
ResourceSparseApplyMomentum ResourceSparseApplyKerasMomentum ResourceSparseApplyAdagrad ResourceSparseApplyAdagradV2
ResourceSparseApplyRMSProp ResourceSparseApplyCenteredRMSProp ResourceSparseApplyAdadelta ResourceSparseApplyFtrl
ResourceSparseApplyFtrlV2
Save SaveV2 SaveSlices Restore RestoreV2 RestoreSlice MergeV2Checkpoints ShardedFilename
FIFOQueueV2 RandomShuffleQueueV2 PaddingFIFOQueueV2 PriorityQueueV2 QueueEnqueueV2 QueueEnqueueManyV2 QueueDequeueV2
QueueDequeueManyV2 QueueDequeueUpToV2 QueueCloseV2 QueueSizeV2 QueueIsClosedV2
ConditionalAccumulator AccumulatorApplyGradient AccumulatorTakeGradient AccumulatorNumAccumulated AccumulatorSetGlobalStep
SparseConditionalAccumulator SparseAccumulatorApplyGradient SparseAccumulatorTakeGradient
ResourceConditionalAccumulator ResourceAccumulatorApplyGradient ResourceAccumulatorTakeGradient
ResourceAccumulatorNumAccumulated ResourceAccumulatorSetGlobalStep
ScalarSummary HistogramSummary MergeSummary TensorSummaryV2 _Send _Recv _HostSend _HostRecv _Arg _Retval
Conv2D Conv2DBackpropFilter Conv2DBackpropInput MaxPool MaxPoolGrad AvgPool AvgPoolGrad FusedBatchNormV3
FusedBatchNormGradV3
""")

# Public names of tensorflow.compat.v1 whose arguments mpirt follows.
FUNCTIONS = words("""
abs accumulate_n acos acosh add add_check_numerics_ops add_n add_to_collection add_to_collections all_variables arg_max
arg_min argmax argmin argsort as_dtype as_string asin asinh assert_equal assert_greater assert_greater_equal assert_less
assert_less_equal assert_negative assert_none_equal assert_non_negative assert_non_positive assert_positive assert_rank
assert_rank_at_least assert_integer assert_scalar assert_type assert_variables_initialized Assert assign assign_add
assign_sub atan atan2 atanh batch_gather batch_to_space bincount bitcast boolean_mask broadcast_dynamic_shape
broadcast_static_shape broadcast_to case cast ceil check_numerics clip_by_average_norm clip_by_global_norm clip_by_norm
clip_by_value colocate_with complex concat cond confusion_matrix conj constant control_dependencies convert_to_tensor
convert_to_tensor_or_indexed_slices cos cosh count_nonzero count_up_to cross cumprod cumsum custom_gradient device diag
diag_part digamma div div_no_nan divide dynamic_partition dynamic_stitch einsum ensure_shape equal erf erfc exp
expand_dims expm1 eye fill fixed_size_partitioner floor floor_div floordiv floormod foldl foldr gather gather_nd
get_collection get_collection_ref get_default_graph get_default_session get_local_variable get_seed get_variable
get_variable_scope global_norm global_variables global_variables_initializer gradients greater greater_equal group
guarantee_const hessians identity identity_n import_graph_def initialize_all_variables initialize_local_variables
initialize_variables invert_permutation is_finite is_inf is_nan is_numeric_tensor is_variable_initialized lbeta less
less_equal lgamma lin_space linspace local_variables local_variables_initializer log log1p log_sigmoid logical_and
logical_not logical_or logical_xor make_ndarray make_tensor_proto make_template map_fn matching_files matmul
matrix_band_part matrix_diag matrix_diag_part matrix_set_diag matrix_transpose maximum meshgrid
min_max_variable_partitioner minimum mod model_variables moving_average_variables multinomial multiply name_scope
negative no_gradient no_op no_regularizer norm not_equal NoGradient NotDifferentiable one_hot ones ones_like op_scope
pad parallel_stack placeholder placeholder_with_default polygamma pow Print print py_func random_gamma random_normal
random_poisson random_shuffle random_uniform random_crop range rank realdiv reciprocal reduce_all reduce_any
reduce_join reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_std reduce_sum reduce_variance
register_tensor_conversion_function RegisterGradient report_uninitialized_variables required_space_to_batch_paddings
reset_default_graph reshape reverse reverse_sequence reverse_v2 rint round rsqrt saturate_cast scalar_mul scan
scatter_add scatter_div scatter_max scatter_min scatter_mul scatter_nd scatter_nd_add scatter_nd_sub scatter_nd_update
scatter_sub scatter_update searchsorted segment_max segment_mean segment_min segment_prod segment_sum sequence_mask
set_random_seed setdiff1d shape shape_n sigmoid sign sin sinh size slice sort space_to_batch split sqrt square
squared_difference squeeze stack stop_gradient strided_slice string_join string_split string_to_number substr subtract
switch_case tables_initializer tan tanh tensor_scatter_add tensor_scatter_sub tensor_scatter_update tensordot tile
timestamp to_bfloat16 to_complex128 to_complex64 to_double to_float to_int32 to_int64 trainable_variables transpose
truediv truncated_normal truncatediv truncatemod tuple unique unique_with_counts unsorted_segment_max
unsorted_segment_mean unsorted_segment_min unsorted_segment_prod unsorted_segment_sqrt_n unsorted_segment_sum unstack
variable_axis_size_partitioner variable_creator_scope variable_op_scope variables_initializer verify_tensor_all_finite
where where_v2 while_loop wrap_function zeros zeros_like control_flow_v2_enabled disable_v2_behavior
disable_eager_execution disable_resource_variables enable_resource_variables resource_variables_enabled
executing_eagerly get_static_value
nn.safe_embedding_lookup_sparse sparse_placeholder sparse_to_dense sparse_tensor_to_dense sparse_tensor_dense_matmul
sparse_reorder sparse_reshape sparse_retain sparse_fill_empty_rows sparse_segment_sum sparse_segment_mean
sparse_segment_sqrt_n sparse_mask sparse.from_dense create_partitioned_variables convert_to_tensor_or_sparse_tensor
nn.bias_add nn.compute_accidental_hits nn.crelu nn.dropout nn.elu nn.embedding_lookup nn.embedding_lookup_sparse
nn.in_top_k nn.l2_loss nn.l2_normalize nn.leaky_relu nn.log_poisson_loss nn.log_softmax nn.moments
nn.normalize_moments nn.batch_normalization nn.relu nn.relu6 nn.relu_layer nn.selu nn.sigmoid
nn.sigmoid_cross_entropy_with_logits nn.softmax nn.softmax_cross_entropy_with_logits
nn.softmax_cross_entropy_with_logits_v2 nn.softplus nn.softsign nn.sparse_softmax_cross_entropy_with_logits
nn.sufficient_statistics nn.tanh nn.top_k nn.weighted_cross_entropy_with_logits nn.weighted_moments nn.xw_plus_b
nn.zero_fraction nn.swish nn.log_uniform_candidate_sampler nn.sampled_softmax_loss nn.nce_loss
math.accumulate_n math.argmax math.cumulative_logsumexp math.divide_no_nan math.erfinv math.floordiv math.multiply_no_nan
math.reduce_std math.reduce_variance math.reduce_euclidean_norm math.softplus math.top_k math.in_top_k math.xdivy
math.xlogy math.xlog1py math.is_non_decreasing math.is_strictly_increasing math.invert_permutation math.nextafter
linalg.matmul linalg.diag linalg.diag_part linalg.norm linalg.eye linalg.transpose linalg.l2_normalize linalg.einsum
linalg.band_part linalg.trace
random.uniform random.normal random.truncated_normal random.shuffle random.set_random_seed random.stateless_uniform
random.stateless_normal random.stateless_truncated_normal random.categorical random.multinomial
losses.absolute_difference losses.add_loss losses.compute_weighted_loss losses.cosine_distance losses.get_losses
losses.get_regularization_loss losses.get_regularization_losses losses.get_total_loss losses.hinge_loss
losses.huber_loss losses.log_loss losses.mean_squared_error losses.sigmoid_cross_entropy losses.softmax_cross_entropy
losses.sparse_softmax_cross_entropy
train.replica_device_setter train.get_global_step train.create_global_step train.get_or_create_global_step
train.global_step train.assert_global_step train.exponential_decay train.piecewise_constant train.polynomial_decay
train.natural_exp_decay train.inverse_time_decay train.cosine_decay train.cosine_decay_restarts train.linear_cosine_decay
train.noisy_linear_cosine_decay train.write_graph train.summary_iterator train.latest_checkpoint
train.get_checkpoint_state train.update_checkpoint_state train.checkpoint_exists train.list_variables
train.load_variable train.load_checkpoint train.init_from_checkpoint train.MonitoredTrainingSession
train.import_meta_graph train.export_meta_graph train.start_queue_runners train.add_queue_runner train.basic_train_loop
train.limit_epochs train.input_producer train.range_input_producer train.string_input_producer
train.slice_input_producer train.batch train.shuffle_batch train.batch_join train.shuffle_batch_join
train.do_quantize_training_on_graphdef train.get_checkpoint_mtimes train.remove_checkpoint train.warm_start
summary.scalar summary.histogram summary.merge summary.merge_all summary.image summary.text summary.tensor_summary
test.compute_gradient test.compute_gradient_error test.is_built_with_cuda test.is_gpu_available test.gpu_device_name
logging.info logging.warn logging.warning logging.error logging.debug logging.fatal logging.log logging.set_verbosity
logging.get_verbosity logging.log_every_n logging.log_first_n logging.log_if
graph_util.convert_variables_to_constants graph_util.extract_sub_graph graph_util.remove_training_nodes
graph_util.must_run_on_cpu graph_util.tensor_shape_from_node_def_name graph_util.import_graph_def
debugging.assert_equal debugging.assert_shapes debugging.check_numerics debugging.is_finite
errors.exception_type_from_error_code errors.error_code_from_exception_type errors.raise_exception_on_not_ok_status
app.run tensor_scatter_nd_update
""")

CLASSES = words("""
Graph Operation Tensor Session InteractiveSession Variable VariableScope variable_scope name_scope DType TensorShape Dimension
DeviceSpec IndexedSlices SparseTensor GraphKeys ConfigProto GPUOptions GraphOptions OptimizerOptions RunOptions RunMetadata
ConditionalAccumulator SparseConditionalAccumulator FIFOQueue PaddingFIFOQueue RandomShuffleQueue PriorityQueue QueueBase
constant_initializer zeros_initializer ones_initializer random_uniform_initializer random_normal_initializer
truncated_normal_initializer uniform_unit_scaling_initializer variance_scaling_initializer orthogonal_initializer
glorot_uniform_initializer glorot_normal_initializer
keras.initializers.he_normal keras.initializers.he_uniform keras.initializers.lecun_normal
keras.initializers.lecun_uniform identity_initializer
initializers.he_normal initializers.he_uniform initializers.lecun_normal initializers.lecun_uniform
initializers.identity initializers.variance_scaling initializers.constant initializers.zeros initializers.ones
initializers.random_uniform initializers.random_normal initializers.truncated_normal initializers.glorot_uniform
initializers.glorot_normal
VariableAggregation VariableSynchronization AggregationMethod
train.Optimizer train.GradientDescentOptimizer train.MomentumOptimizer train.AdagradOptimizer train.AdamOptimizer
train.RMSPropOptimizer train.AdadeltaOptimizer train.FtrlOptimizer train.ProximalGradientDescentOptimizer
train.ProximalAdagradOptimizer train.AdagradDAOptimizer train.ExponentialMovingAverage train.SyncReplicasOptimizer
train.ClusterSpec train.Server train.Saver train.Supervisor train.Coordinator train.LooperThread train.QueueRunner
train.MonitoredSession train.SingularMonitoredSession train.SessionCreator train.ChiefSessionCreator
train.WorkerSessionCreator train.Scaffold train.SessionManager train.SessionRunHook train.SessionRunArgs
train.SessionRunContext train.SessionRunValues train.CheckpointSaverHook train.CheckpointSaverListener
train.FeedFnHook train.FinalOpsHook train.GlobalStepWaiterHook train.LoggingTensorHook train.NanTensorHook
train.NanLossDuringTrainingError train.ProfilerHook train.SecondOrStepTimer train.StepCounterHook train.StopAtStepHook
train.SummarySaverHook train.VocabInfo train.NewCheckpointReader train.Checkpoint
summary.FileWriter summary.FileWriterCache
errors.OpError
""")


def op_json(op_def: Any) -> dict[str, Any]:
    """One OpDef as JSON: arguments in order, attributes with type, default and allowed values, and the flags that matter."""
    from google.protobuf import json_format
    from tensorflow.python.framework import dtypes

    def type_name(enum: int) -> str:
        return dtypes.as_dtype(enum).name

    def value(attr_value: Any) -> Any:
        kind = attr_value.WhichOneof("value")
        if kind == "type":
            return type_name(attr_value.type)
        if kind == "s":
            return attr_value.s.decode("latin1")
        if kind in ("i", "f", "b"):
            return getattr(attr_value, kind)
        if kind == "shape":
            shape = attr_value.shape
            return None if shape.unknown_rank else [None if d.size < 0 else d.size for d in shape.dim]
        if kind == "list":
            items = attr_value.list
            for field in ("s", "i", "f", "b", "type", "shape"):
                if values := list(getattr(items, field)):
                    return [v.decode("latin1") if field == "s" else type_name(v) if field == "type" else v for v in values]
            return []
        return json_format.MessageToDict(attr_value)

    def arg(a: Any) -> dict[str, Any]:
        out: dict[str, Any] = {"name": a.name}
        if a.type:
            out["type"] = type_name(a.type)
        for field in ("type_attr", "number_attr", "type_list_attr"):
            if getattr(a, field):
                out[field] = getattr(a, field)
        if a.is_ref:
            out["is_ref"] = True
        return out

    def attr(a: Any) -> dict[str, Any]:
        out: dict[str, Any] = {"name": a.name, "type": a.type}
        if a.HasField("default_value"):
            out["default"] = value(a.default_value)
        if a.HasField("allowed_values"):
            out["allowed"] = value(a.allowed_values)
        if a.has_minimum:
            out["minimum"] = a.minimum
        return out

    out: dict[str, Any] = {
        "inputs": [arg(a) for a in op_def.input_arg],
        "outputs": [arg(a) for a in op_def.output_arg],
        "attrs": [attr(a) for a in op_def.attr],
    }
    if op_def.control_output:
        out["control_outputs"] = list(op_def.control_output)
    for flag in ("is_stateful", "is_commutative", "is_aggregate", "allows_uninitialized_input"):
        if getattr(op_def, flag):
            out[flag] = True
    if op_def.HasField("deprecation"):
        out["deprecated_since_graph_version"] = op_def.deprecation.version
    return out


def ops(extra: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    """JSON of every op type listed here or in ``extra``; names that TensorFlow hasn't are left out."""
    from tensorflow.python.framework import op_def_registry

    found = {name: op_def_registry.get(name) for name in sorted(set(OP_TYPES) | extra)}
    return {name: op_json(op_def) for name, op_def in found.items() if op_def is not None}


def _default(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_default(v) for v in value]
    if type(value).__name__ == "DType":
        return {"dtype": value.name}
    if hasattr(value, "name") and hasattr(value, "value"):  # an enum member
        return {"enum": f"{type(value).__name__}.{value.name}"}
    if type(value) is object:
        return {"repr": "unset"}
    return {"repr": re.sub(r" at 0x[0-9a-f]+", "", repr(value))}


def signature(function: Any) -> list[dict[str, Any]] | None:
    """Arguments in order with kind and default, without ``self``; None where Python can't tell."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    out = []
    for p in parameters:
        if p.name in ("self", "cls") and p is parameters[0]:
            continue
        entry: dict[str, Any] = {"name": p.name}
        if p.kind is not p.POSITIONAL_OR_KEYWORD:
            entry["kind"] = p.kind.name
        if p.default is not p.empty:
            entry["default"] = _default(p.default)
        out.append(entry)
    return out


def _find(root: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        root = getattr(root, part, None)
    return root


def surface(tf: Any) -> dict[str, Any]:
    """Signatures of functions, classes with their public methods and attributes, dtypes, error codes and GraphKeys."""
    functions = {}
    for name in sorted(FUNCTIONS):
        found = _find(tf, name)
        if found is not None:
            functions[name] = signature(found)
    classes = {}
    for name in sorted(set(CLASSES)):
        found = _find(tf, name)
        if found is None:
            continue
        if not inspect.isclass(found):
            functions[name] = signature(found)
            continue
        init = signature(found.__init__)
        # Classes that make their arguments known through __new__ only (Variable, some proto messages).
        methods, properties, constants = {}, [], {}
        if "google" not in found.__mro__[-2].__module__ and not hasattr(found, "DESCRIPTOR"):
            for member in sorted(dir(found)):
                if member.startswith("_") and member not in ("__init__", "__call__", "__enter__", "__exit__"):
                    continue
                raw = inspect.getattr_static(found, member)
                value = getattr(found, member, None)
                if isinstance(raw, property) or type(raw).__name__ == "classproperty":
                    properties.append(member)
                elif callable(value) and not inspect.isclass(value) and not hasattr(value, "value"):
                    if member != "__init__":
                        methods[member] = signature(value)
                elif isinstance(value, (str, int, float)) and not hasattr(value, "value"):
                    constants[member] = value
        else:
            constants = {}
            methods = {}
            properties = [f.name for f in found.DESCRIPTOR.fields]
        classes[name] = {"init": init, "methods": methods, "properties": properties, "constants": constants}
    keys = {k: getattr(tf.GraphKeys, k) for k in dir(tf.GraphKeys) if k.isupper()}
    errors = {k: (getattr(tf.errors, k).__mro__[1].__name__) for k in dir(tf.errors) if k.endswith("Error")}
    codes = {k: getattr(tf.errors, k) for k in dir(tf.errors) if k.isupper()}
    from tensorflow.python.framework import dtypes

    types = {}
    for name in sorted(dir(tf)):
        value = getattr(tf, name)
        if isinstance(value, dtypes.DType):
            types[name] = {
                "name": value.name,
                "enum": value.as_datatype_enum,
                "size": value.size if value.is_numpy_compatible else None,
            }
    return {
        "tensorflow_version": tf.__version__,
        "functions": functions,
        "classes": classes,
        "graph_keys": keys,
        "errors": errors,
        "error_codes": codes,
        "dtypes": types,
    }
