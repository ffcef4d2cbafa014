"""A network of two layers in plain NumPy, with dropout and a backward pass that uses its masks."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dropkit._checks import KEY, PROBABILITY, Integer, Number, argument_error, argument_type_error
from dropkit.numpy.dropout import check_meaning, dropout_backward, dropout_forward
from dropkit.random import call_key

__all__ = ["Pass", "TwoLayerNetwork"]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_COUNT = Integer(1, 2**31 - 1)
_RATE = Number(0.0, math.inf, open_low=True, open_high=True)


class Pass(NamedTuple):
    """What a forward pass leaves for the backward pass: its result, and what the gradients are made of."""

    logits: Array
    dropped_x: Array
    active: Mask
    dropped_hidden: Array
    mask_x: Mask
    mask_hidden: Mask
    training: bool


class TwoLayerNetwork:
    """Classify rows into two classes by one hidden layer: sigmoid(w2 . dropout(relu(w1 . dropout(x) + b1)) + b2).

    The parameters are float64 arrays in ``parameters``: ``w1`` (inputs, hidden), ``b1`` (hidden,), ``w2`` (hidden,) and
    ``b2`` (). Weights start normal with variance 2 / inputs (He et al. 2015) and 1 / hidden, biases at 0. Masks follow
    from ``seed`` and ``steps``, the number of updates made: a forward pass repeated at one step drops the same units.

    Args:
        inputs: Number of columns of x, at least 1.
        hidden: Number of hidden units, at least 1.
        p: Probability of dropping a hidden unit, in ``[0, 1]``.
        p_input: Probability of dropping an input, in ``[0, 1]``.
        seed: Integer in ``[0, 2**64)`` from which the first weights, the masks and the order of the rows follow.

    Raises:
        ArgumentError: If an argument is out of range.
        ArgumentTypeError: If a number that must be whole is not.

    Examples:
        >>> import numpy as np
        >>> x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> y = np.array([0, 1, 1, 0])
        >>> network = TwoLayerNetwork(inputs=2, hidden=16, p=0.1, seed=0)
        >>> network.fit(x, y, epochs=500, learning_rate=0.5)
        >>> network.predict(x).round().astype(int)
        array([0, 1, 1, 0])

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), "Dropout: a simple way to prevent neural
        networks from overfitting", sections 4 and 5.1, where p is the probability of keeping a unit.
    """

    def __init__(self, inputs: int, hidden: int, *, p: float = 0.5, p_input: float = 0.0, seed: int = 0) -> None:
        where = "TwoLayerNetwork"
        inputs, hidden = _COUNT.check(where, "inputs", inputs), _COUNT.check(where, "hidden", hidden)
        self.p = PROBABILITY.check(where, "p", p)
        self.p_input = PROBABILITY.check(where, "p_input", p_input)
        self.seed = KEY.check(where, "seed", seed)
        self.steps = 0
        self._rng = np.random.default_rng(self.seed)
        self.parameters: dict[str, Array] = {
            "w1": self._rng.normal(scale=math.sqrt(2 / inputs), size=(inputs, hidden)),
            "b1": np.zeros(hidden),
            "w2": self._rng.normal(scale=math.sqrt(1 / hidden), size=hidden),
            "b2": np.zeros(()),
        }

    def forward(self, x: npt.ArrayLike, training: bool = False) -> Pass:
        """Compute the logits of a batch and keep what `backward` needs.

        Args:
            x: Rows to classify, of shape (rows, inputs).
            training: Whether to drop units.

        Returns:
            The `Pass`; its ``logits``, of shape (rows,), are positive where class 1 is the likelier.

        Raises:
            ArgumentError: If ``x`` has another shape or holds NaN or infinities.
            ArgumentTypeError: If ``x`` does not hold real numbers, or is a masked array or a matrix.
        """
        w1, b1, w2, b2 = (self.parameters[name] for name in ("w1", "b1", "w2", "b2"))
        rows = _rows("TwoLayerNetwork.forward", x, len(w1))
        dropped_x, mask_x = dropout_forward(rows, self.p_input, training, self._key("input"))
        hidden = dropped_x @ w1 + b1
        dropped_hidden, mask_hidden = dropout_forward(np.maximum(hidden, 0), self.p, training, self._key("hidden"))
        logits = dropped_hidden @ w2 + b2
        return Pass(logits, dropped_x, hidden > 0, dropped_hidden, mask_x, mask_hidden, training)

    def backward(self, done: Pass, y: npt.ArrayLike) -> dict[str, Array]:
        """Compute the gradient of the mean cross-entropy, through the units that the forward pass kept.

        Args:
            done: What `forward` returned.
            y: The rows' classes, 0 or 1, of shape (rows,).

        Returns:
            One gradient a parameter, under the parameter's name.

        Raises:
            ArgumentError: If ``y`` has another shape or holds anything but 0 and 1.
            ArgumentTypeError: If ``done`` is not what `forward` returned.
        """
        if not isinstance(done, Pass):
            raise argument_type_error("TwoLayerNetwork.backward", "done", "what `forward` returned", done)
        labels = _labels("TwoLayerNetwork.backward", y, len(done.logits))
        grad_logits = (_sigmoid(done.logits) - labels) / len(labels)
        grad_hidden = np.outer(grad_logits, self.parameters["w2"])
        grad_hidden = dropout_backward(grad_hidden, done.mask_hidden, self.p, done.training) * done.active
        return {
            "w1": done.dropped_x.T @ grad_hidden,
            "b1": grad_hidden.sum(axis=0),
            "w2": done.dropped_hidden.T @ grad_logits,
            "b2": np.asarray(grad_logits.sum()),
        }

    def step(self, gradients: Mapping[str, Array], learning_rate: float) -> None:
        """Take one step of gradient descent; the next forward pass draws new masks.

        Args:
            gradients: What `backward` returned.
            learning_rate: Size of the step, above 0.

        Raises:
            ArgumentError: If the learning rate is not a finite number above 0, or a gradient is missing or has another
                shape than its parameter.
            ArgumentTypeError: If ``gradients`` is no mapping.
        """
        where = "TwoLayerNetwork.step"
        learning_rate = _RATE.check(where, "learning_rate", learning_rate)
        if not isinstance(gradients, Mapping):
            raise argument_type_error(where, "gradients", "a mapping from names to gradients", gradients)
        shapes = {name: value.shape for name, value in self.parameters.items()}
        given = {name: np.shape(gradient) for name, gradient in gradients.items()}
        if given != shapes:
            raise argument_error(where, "gradients", f"of the shapes {shapes}", given, "Give what `backward` returned.")
        for name, value in self.parameters.items():
            self.parameters[name] = np.asarray(value - learning_rate * gradients[name])
        self.steps += 1

    def fit(
        self, x: npt.ArrayLike, y: npt.ArrayLike, *, epochs: int, learning_rate: float, batch_size: int | None = None
    ) -> None:
        """Train by stochastic gradient descent, every epoch in a new order of the rows.

        Args:
            x: Rows of shape (rows, inputs).
            y: Their classes, 0 or 1, of shape (rows,).
            epochs: How often each row is used, at least 1.
            learning_rate: Size of a step, above 0.
            batch_size: Rows a step, at least 1; all of them if None.

        Raises:
            ArgumentError: If an argument is out of range, of another shape, or holds what is not accepted.
            ArgumentTypeError: If a number that must be whole is not, or ``x`` does not hold real numbers.
        """
        where = "TwoLayerNetwork.fit"
        rows = _rows(where, x, len(self.parameters["w1"]))
        labels = _labels(where, y, len(rows))
        epochs = _COUNT.check(where, "epochs", epochs)
        learning_rate = _RATE.check(where, "learning_rate", learning_rate)
        size = len(rows) if batch_size is None else _COUNT.check(where, "batch_size", batch_size)
        for _ in range(epochs):
            order = self._rng.permutation(len(rows))
            for batch in np.split(order, range(size, len(rows), size)):
                gradients = self.backward(self.forward(rows[batch], training=True), labels[batch])
                self.step(gradients, learning_rate)

    def loss(self, x: npt.ArrayLike, y: npt.ArrayLike, training: bool = False) -> float:
        """Compute the mean cross-entropy of a batch, in nats.

        Args:
            x: Rows of shape (rows, inputs).
            y: Their classes, 0 or 1, of shape (rows,).
            training: Whether to drop units; a comparison of losses wants False on both sides.

        Returns:
            The loss. Guessing 1/2 for every row costs log 2 = 0.693.

        Raises:
            ArgumentError: As `forward` and `backward` do.
            ArgumentTypeError: As `forward` does.
        """
        logits = self.forward(x, training).logits
        labels = _labels("TwoLayerNetwork.loss", y, len(logits))
        return float(np.mean(np.logaddexp(0, logits) - labels * logits))

    def predict(self, x: npt.ArrayLike) -> Array:
        """Compute the probability of class 1 for each row, with nothing dropped.

        Args:
            x: Rows of shape (rows, inputs).

        Returns:
            Probabilities of shape (rows,).

        Raises:
            ArgumentError: As `forward` does.
            ArgumentTypeError: As `forward` does.
        """
        return _sigmoid(self.forward(x).logits)

    def _key(self, site: str) -> int:
        return call_key(self.seed, site, self.steps)


def _sigmoid(logits: Array) -> Array:
    return np.exp(-np.logaddexp(0, -logits))  # no overflow for logits of any size


def _rows(where: str, x: npt.ArrayLike, inputs: int) -> Array:
    check_meaning(where, "x", x)
    rows: npt.NDArray[Any] = np.asarray(x)
    if rows.dtype.kind not in "fiub":
        raise argument_type_error(where, "x", "an array of real numbers", x)
    if rows.ndim != 2 or rows.shape[1] != inputs or len(rows) == 0:
        raise argument_error(where, "x", f"of shape (rows, {inputs}) with a row or more", rows.shape)
    if not np.isfinite(rows).all():
        raise argument_error(where, "x", "finite", x, "Leave rows with NaN or infinities out, or fill them in.")
    return rows.astype(np.float64, copy=False)


def _labels(where: str, y: npt.ArrayLike, rows: int) -> Array:
    check_meaning(where, "y", y)
    labels: npt.NDArray[Any] = np.asarray(y)
    if labels.shape != (rows,):
        raise argument_error(where, "y", f"of shape ({rows},), a class for each row", labels.shape)
    if labels.dtype.kind not in "fiub" or not np.isin(labels, (0, 1)).all():
        raise argument_error(where, "y", "classes 0 and 1 alone", y)
    return labels.astype(np.float64, copy=False)
