"""Dropout layers for PyTorch: modules that keep their arguments and call `dropkit.functional`."""

from dropkit.nn.dropout import Dropout
from dropkit.nn.zoneout import Zoneout

__all__ = ["Dropout", "Zoneout"]
