"""The mask definition, version 1: every random number is a pure function of its address.

An address is a 64-bit key (who draws: the run's seed, the place in the model, the training step, the call), a place in
the tensor (row and column of the logical index) and a stream. This package states the definition in NumPy alone; every
kernel of dropkit gives the same bits.
"""

from dropkit.random.fields import keep_mask, normal, threshold, uniform, uniform32
from dropkit.random.keys import call_key, field, fold, site
from dropkit.random.philox import philox4x32

__all__ = [
    "MASK_VERSION",
    "call_key",
    "field",
    "fold",
    "keep_mask",
    "normal",
    "philox4x32",
    "site",
    "threshold",
    "uniform",
    "uniform32",
]

MASK_VERSION = 1
