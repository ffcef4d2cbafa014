"""Inverted dropout on NumPy arrays, forward and backward."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dropkit._checks import KEY, PROBABILITY, Integer, argument_error, argument_type_error
from dropkit.kernels.native.arrays import apply_mask, keep_mask
from dropkit.random import threshold
from dropkit.random.layout import check_addressable

__all__ = ["check_meaning", "dropout_backward", "dropout_forward"]

_ALL = 2**32  # the threshold at which every unit is dropped
_RNG = Integer(KEY.low, KEY.high, KEY.name, "A generator is accepted too: numpy.random.default_rng(seed).")

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


def dropout_forward(
    h: Array,
    p: float,
    training: bool = True,  # the position that PyTorch gives it
    rng: int | np.random.Generator | None = None,
    *,
    mask: Mask | None = None,
) -> tuple[Array, Mask]:
    """Drop each element of an array with probability p and scale up the others, so that the mean stays the same.

    The survivors' scale is 1 / (1 - r) with the realised rate r = T / 2**32, which differs from `p` by at most 2**-33.

    Args:
        h: Activations of any shape, real or complex floats. float16 is computed in float32 and rounded once. Arrays of
            subclasses count as plain ones, but masked arrays and matrices are refused: their mask, and what ``*``
            means, would be lost.
        p: Probability of dropping, in ``[0, 1]``.
        training: Whether to drop. In evaluation, and for ``p=0`` with no mask given, the result is ``h`` itself and
            nothing is drawn. Default: True.
        rng: Where the mask comes from: a NumPy generator, of which one 64-bit key is drawn; an integer in
            ``[0, 2**64)``, which is the key itself, as in ``dropkit.functional.dropout``; or None for a fresh key from
            the operating system. Default: None.
        mask: A bool array to use instead of drawing one, True = kept, of the shape of ``h``. Default: drawn.

    Returns:
        The result, of the shape and type of ``h``, and the mask, True where an element was kept (all True in
        evaluation). Dropped elements are +0 whatever they were, NaN and infinities too. At ``p = 1`` all are. What
        overflows becomes infinity, without NumPy's warning.

    Raises:
        ArgumentError: If ``p`` or the key is out of range, the mask has another shape, or both ``rng`` and ``mask``
            are given.
        ArgumentTypeError: If an argument has a type that is not accepted, such as an array of integers.

    Examples:
        >>> import numpy as np
        >>> a = np.array([0.36, 0.13, 0.42, 0.25])
        >>> out, mask = dropout_forward(a, p=0.5, mask=np.array([True, False, True, False]))
        >>> out
        array([0.72, 0.  , 0.84, 0.  ])
        >>> dropout_forward(a, p=0.5, rng=42)
        (array([0.72, 0.26, 0.  , 0.  ]), array([ True,  True, False, False]))

    References:
        Hinton, Srivastava, Krizhevsky, Sutskever and Salakhutdinov (2012), "Improving neural networks by preventing
        co-adaptation of feature detectors"; Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks
        from overfitting", sections 4 and 10, where p is the probability of keeping a unit.
    """
    where = "dropout_forward"
    _check_floats(where, "h", h)
    dropped = threshold(PROBABILITY.check(where, "p", p))
    _check_training(where, training, "A key or a generator is given by its name, such as rng=42.")
    if rng is not None and not isinstance(rng, np.random.Generator):
        rng = _RNG.check(where, "rng", rng)
    if mask is not None:
        _check_mask(where, mask, h)
        if rng is not None:
            remedy = "A generator or a key draws a mask: drop one of them."
            raise argument_error(where, "rng", "left out where a mask is given", rng, remedy)
    if not training or (dropped == 0 and mask is None):
        return h, np.ones(h.shape, np.bool_)
    if mask is None:
        check_addressable(where, "h", h.shape)
        mask = keep_mask(_key(rng), h.shape, dropped)
    if dropped == _ALL:  # nothing survives, whatever the mask
        mask = np.zeros(h.shape, np.bool_)
    return _apply(h, mask, dropped), mask


def dropout_backward(
    grad_out: Array,
    mask: Mask,
    p: float,
    training: bool = True,
) -> Array:
    """Return the gradient with respect to dropout's input: the same mask and the same scale as in the forward.

    Args:
        grad_out: Gradient with respect to dropout's output, real or complex floats.
        mask: The mask that `dropout_forward` returned, of the shape of ``grad_out``.
        p: Probability of dropping in the forward, in ``[0, 1]``.
        training: As in the forward. In evaluation the gradient is ``grad_out`` itself. Default: True.

    Returns:
        The gradient, of the shape and type of ``grad_out``; +0 at every dropped element.

    Raises:
        ArgumentError: If ``p`` is out of range or the mask has another shape.
        ArgumentTypeError: If an argument has a type that is not accepted.

    Examples:
        >>> import numpy as np
        >>> mask = np.array([True, False, True, False])
        >>> dropout_backward(np.array([0.3, -0.1, 0.2, -0.05]), mask, p=0.5)
        array([0.6, 0. , 0.4, 0. ])

    References:
        Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting", section 5.1.
    """
    where = "dropout_backward"
    _check_floats(where, "grad_out", grad_out)
    _check_mask(where, mask, grad_out)
    dropped = threshold(PROBABILITY.check(where, "p", p))
    _check_training(where, training)
    return _apply(grad_out, mask, dropped) if training else grad_out


def _apply(values: Array, mask: Mask, dropped: int) -> Array:
    """Scale what the mask keeps and leave the rest at +0, by the compiled kernels where these take the array."""
    out = apply_mask(values, mask, dropped) if dropped < _ALL else None
    return _apply_by_numpy(values, mask, dropped) if out is None else out


def _apply_by_numpy(values: Array, mask: Mask, dropped: int) -> Array:
    """Do the same in NumPy alone; dropped values are never read, so NaN cannot leak."""
    out = np.zeros_like(values, dtype=np.result_type(values.dtype, np.float32), subok=False)
    with np.errstate(over="ignore", invalid="ignore"):  # of which the kernels say nothing either
        if dropped < _ALL:
            scale = out.real.dtype.type(_ALL / (_ALL - dropped))
            np.multiply(values.real, scale, out=out.real, where=mask)
            if np.iscomplexobj(values):  # part by part: a complex product would turn infinity into NaN
                np.multiply(values.imag, scale, out=out.imag, where=mask)
        return out.astype(values.dtype, copy=False)


def _key(rng: int | np.random.Generator | None) -> int:
    if isinstance(rng, np.random.Generator) or rng is None:
        return int(np.random.default_rng(rng).integers(_ALL**2, dtype=np.uint64))
    return rng


def check_meaning(where: str, name: str, value: object) -> None:
    """Raise for an array of a class that says what a plain array cannot, so that it would be lost without a word."""
    if type(value) is np.ndarray:
        return
    if isinstance(value, np.ma.MaskedArray):
        remedy = f"Its mask would be lost. Fill it, as with {name}.filled(0)."
        raise argument_type_error(where, name, "an array that is not masked", value, remedy)
    if isinstance(value, np.matrix):
        remedy = f"Convert it: numpy.asarray({name})."
        raise argument_type_error(where, name, "an array that is no matrix", value, remedy)


def _check_floats(where: str, name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        remedy = "Convert it: numpy.asarray(..., dtype=float)."
        raise argument_type_error(where, name, "a NumPy array of floats", value, remedy)
    check_meaning(where, name, value)
    if value.dtype.kind not in "fc":
        raise argument_type_error(
            where, name, "of a floating or complex type", value.dtype, "Convert it: astype(float)."
        )


def _check_mask(where: str, mask: object, values: Array) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        found = mask.dtype if isinstance(mask, np.ndarray) else mask
        raise argument_type_error(where, "mask", "a NumPy array of type bool", found, "True is kept.")
    check_meaning(where, "mask", mask)
    if mask.shape != values.shape:
        raise argument_error(where, "mask", f"of shape {values.shape}", mask.shape)


def _check_training(where: str, training: object, remedy: str = "") -> None:
    if not isinstance(training, bool | np.bool_):
        raise argument_type_error(where, "training", "True or False", training, remedy)
