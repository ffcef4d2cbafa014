"""Dropout for NumPy users and learners: the operation, its gradient, and a small network that uses both.

Nothing here needs PyTorch. The masks are those of `dropkit.random`, so the same key gives the same mask here and in
PyTorch; where the compiled kernels are installed, they draw and apply them here too.
"""

from dropkit.numpy.dropout import dropout_backward, dropout_forward
from dropkit.numpy.network import TwoLayerNetwork

__all__ = ["TwoLayerNetwork", "dropout_backward", "dropout_forward"]
