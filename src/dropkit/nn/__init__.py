"""Dropout layers for PyTorch: modules that keep their arguments and call `dropkit.functional`."""

from dropkit.nn.alpha import AlphaDropout, FeatureAlphaDropout
from dropkit.nn.attention import MultiheadAttention
from dropkit.nn.blocks import DropBlock1d, DropBlock2d, DropBlock3d
from dropkit.nn.channels import Dropout1d, Dropout2d, Dropout3d
from dropkit.nn.concrete import ConcreteDropout
from dropkit.nn.drop_connect import DropConnect
from dropkit.nn.dropout import Dropout
from dropkit.nn.gaussian import GaussianDropout
from dropkit.nn.learned import regularization
from dropkit.nn.locked import LockedDropout
from dropkit.nn.paths import DropPath, StochasticDepth
from dropkit.nn.pruning import pruned
from dropkit.nn.recurrent import GRU, LSTM
from dropkit.nn.sparse import SparseVariationalConv2d, SparseVariationalLinear
from dropkit.nn.transformer import TransformerEncoderLayer
from dropkit.nn.variational import VariationalDropout, VariationalLinear
from dropkit.nn.weight_drop import WeightDrop
from dropkit.nn.words import EmbeddingDropout, WordDropout
from dropkit.nn.zoneout import Zoneout

__all__ = [
    "GRU",
    "LSTM",
    "AlphaDropout",
    "ConcreteDropout",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnect",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "LockedDropout",
    "MultiheadAttention",
    "SparseVariationalConv2d",
    "SparseVariationalLinear",
    "StochasticDepth",
    "TransformerEncoderLayer",
    "VariationalDropout",
    "VariationalLinear",
    "WeightDrop",
    "WordDropout",
    "Zoneout",
    "pruned",
    "regularization",
]
