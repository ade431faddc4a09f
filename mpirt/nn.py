"""``tf.nn``: neural network functions, under TensorFlow's names."""

from __future__ import annotations

from mpirt.ops.activation_ops import crelu, elu, leaky_relu, relu, relu6, selu, softplus, softsign, swish
from mpirt.ops.embedding_ops import embedding_lookup
from mpirt.ops.embedding_sparse_ops import embedding_lookup_sparse, safe_embedding_lookup_sparse
from mpirt.ops.moments_ops import (
    batch_normalization,
    l2_normalize,
    moments,
    normalize_moments,
    sufficient_statistics,
    weighted_moments,
    zero_fraction,
)  # fmt: skip
from mpirt.ops.nn_ops import (
    bias_add,
    dropout,
    l2_loss,
    log_softmax,
    relu_layer,
    sigmoid_cross_entropy_with_logits,
    softmax,
    softmax_cross_entropy_with_logits,
    softmax_cross_entropy_with_logits_v2,
    sparse_softmax_cross_entropy_with_logits,
    weighted_cross_entropy_with_logits,
    xw_plus_b,
)  # fmt: skip
from mpirt.ops.topk_ops import in_top_k, top_k
from mpirt.ops.unary_ops import sigmoid, tanh

__all__ = [
    "batch_normalization", "bias_add", "crelu", "dropout", "elu", "embedding_lookup", "embedding_lookup_sparse", "in_top_k",
    "l2_loss", "l2_normalize", "leaky_relu", "log_softmax", "moments", "normalize_moments", "relu", "relu6", "relu_layer",
    "safe_embedding_lookup_sparse", "selu", "sigmoid", "sigmoid_cross_entropy_with_logits", "softmax",
    "softmax_cross_entropy_with_logits", "softmax_cross_entropy_with_logits_v2", "softplus", "softsign",
    "sparse_softmax_cross_entropy_with_logits", "sufficient_statistics", "swish", "tanh", "top_k",
    "weighted_cross_entropy_with_logits", "weighted_moments", "xw_plus_b", "zero_fraction",
]  # fmt: skip
