"""Training: ``tf.train``, under TensorFlow's names."""

from __future__ import annotations

from tensorboard.compat.proto.cluster_pb2 import ClusterDef, JobDef

from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.distributed.server import Server
from mpirt.train.adadelta import AdadeltaOptimizer
from mpirt.train.adagrad import AdagradOptimizer
from mpirt.train.adam import AdamOptimizer
from mpirt.train.coordinator import Coordinator, LooperThread
from mpirt.train.device_setter import GreedyLoadBalancingStrategy, NameHashStrategy, byte_size_load_fn, replica_device_setter
from mpirt.train.ftrl import FtrlOptimizer
from mpirt.train.gradient_descent import GradientDescentOptimizer
from mpirt.train.input import (
    batch,
    batch_join,
    input_producer,
    limit_epochs,
    range_input_producer,
    shuffle_batch,
    shuffle_batch_join,
    slice_input_producer,
    string_input_producer,
)
from mpirt.train.learning_rate_decay import (
    cosine_decay,
    exponential_decay,
    inverse_time_decay,
    natural_exp_decay,
    piecewise_constant,
    polynomial_decay,
)
from mpirt.train.learning_rate_decay import piecewise_constant as piecewise_constant_decay
from mpirt.train.momentum import MomentumOptimizer
from mpirt.train.moving_averages import ExponentialMovingAverage
from mpirt.train.optimizer import Optimizer
from mpirt.train.proximal import AdagradDAOptimizer, ProximalAdagradOptimizer, ProximalGradientDescentOptimizer
from mpirt.train.queue_runner import QueueRunner, add_queue_runner, start_queue_runners
from mpirt.train.rmsprop import RMSPropOptimizer
from mpirt.train.training_util import (
    assert_global_step,
    create_global_step,
    get_global_step,
    get_or_create_global_step,
    global_step,
)

__all__ = [
    "AdadeltaOptimizer", "AdagradDAOptimizer", "AdagradOptimizer", "AdamOptimizer", "ClusterDef", "ClusterSpec",
    "Coordinator", "ExponentialMovingAverage", "FtrlOptimizer", "GradientDescentOptimizer", "GreedyLoadBalancingStrategy",
    "JobDef", "LooperThread", "MomentumOptimizer", "NameHashStrategy", "Optimizer", "ProximalAdagradOptimizer",
    "ProximalGradientDescentOptimizer", "QueueRunner", "RMSPropOptimizer", "Server", "add_queue_runner",
    "assert_global_step", "batch", "batch_join", "byte_size_load_fn", "cosine_decay", "create_global_step",
    "exponential_decay", "get_global_step", "get_or_create_global_step", "global_step", "input_producer",
    "inverse_time_decay", "limit_epochs", "natural_exp_decay", "piecewise_constant", "piecewise_constant_decay",
    "polynomial_decay", "range_input_producer", "replica_device_setter", "shuffle_batch", "shuffle_batch_join",
    "slice_input_producer", "start_queue_runners", "string_input_producer",
]  # fmt: skip
