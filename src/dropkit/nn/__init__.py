"""Dropout layers for PyTorch: modules that keep their arguments and call `dropkit.functional`."""

from dropkit.nn.dropout import Dropout

__all__ = ["Dropout"]
