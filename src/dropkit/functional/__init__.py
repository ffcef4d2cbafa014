"""Stateless dropout operations for PyTorch, with autograd, `vmap`, `torch.compile` and fake-tensor support."""

from dropkit.functional.activation import activation_dropout
from dropkit.functional.alpha import alpha_dropout, feature_alpha_dropout
from dropkit.functional.attention import scaled_dot_product_attention
from dropkit.functional.blocks import drop_block1d, drop_block2d, drop_block3d
from dropkit.functional.channels import dropout1d, dropout2d, dropout3d, locked_dropout
from dropkit.functional.concrete import concrete_dropout
from dropkit.functional.drop_connect import drop_connect, drop_connect_inference
from dropkit.functional.dropout import dropout
from dropkit.functional.gaussian import gaussian_dropout
from dropkit.functional.norms import dropout_add_layer_norm, dropout_add_rms_norm
from dropkit.functional.paths import drop_path, linear_rates, skip_path
from dropkit.functional.residual import dropout_add
from dropkit.functional.variational import local_reparameterization, log_uniform_kl, variational_dropout
from dropkit.functional.words import embedding_dropout, word_dropout
from dropkit.functional.zoneout import zoneout

__all__ = [
    "activation_dropout",
    "alpha_dropout",
    "concrete_dropout",
    "drop_block1d",
    "drop_block2d",
    "drop_block3d",
    "drop_connect",
    "drop_connect_inference",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "dropout_add_layer_norm",
    "dropout_add_rms_norm",
    "embedding_dropout",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "linear_rates",
    "local_reparameterization",
    "locked_dropout",
    "log_uniform_kl",
    "scaled_dot_product_attention",
    "skip_path",
    "variational_dropout",
    "word_dropout",
    "zoneout",
]
