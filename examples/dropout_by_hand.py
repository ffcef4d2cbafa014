"""Dropout on four numbers, worked out by hand: one mask, its gradient, all sixteen masks, a thousand random ones.

The layer has the activations a = [0.36, 0.13, 0.42, 0.25] and p = 0.5. Everything is either exact, because sixteen
masks can be enumerated, or printed with its standard error.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from dropkit.numpy import dropout_backward, dropout_forward

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

A = np.array([0.36, 0.13, 0.42, 0.25])
MASK = np.array([True, False, True, False])
GRADIENT = np.array([0.3, -0.1, 0.2, -0.05])  # with respect to the dropped activations
PRINTED = np.array([0.3601, 0.1293, 0.4202, 0.2501])  # "the mean of 1,000 passes", as a tutorial prints it
RERUN = np.array([0.3463, 0.1310, 0.4250, 0.2485])  # what that tutorial's own code gives


def masks(units: int) -> Iterator[tuple[bool, ...]]:
    """Yield all 2**units masks; at p = 0.5 each is as likely as any other."""
    return itertools.product((False, True), repeat=units)


def exact_moments(a: Sequence[Fraction], p: Fraction) -> tuple[list[Fraction], list[Fraction]]:
    """Return each unit's mean and variance over all masks, in exact fractions."""
    q = 1 - p
    mean, square = [Fraction(0)] * len(a), [Fraction(0)] * len(a)
    for mask in masks(len(a)):
        chance = math.prod(q if kept else p for kept in mask)
        for unit, kept in enumerate(mask):
            value = a[unit] / q if kept else Fraction(0)
            mean[unit] += chance * value
            square[unit] += chance * value**2
    return mean, [second - first**2 for first, second in zip(mean, square, strict=True)]


def enumerated_moments(a: Array) -> tuple[Array, Array]:
    """Return each unit's mean and variance over all masks at p = 0.5, in float64, from the operation itself."""
    outcomes = np.array([dropout_forward(a, 0.5, mask=np.array(mask))[0] for mask in masks(len(a))])
    return outcomes.mean(axis=0), outcomes.var(axis=0)


def sampled_mean(a: Array, p: float, passes: int, key: int) -> tuple[Array, Array]:
    """Return the mean of random passes and the standard error that p/(1-p) a**2 predicts for it."""
    outcomes, _ = dropout_forward(np.tile(a, (passes, 1)), p, rng=key)
    return outcomes.mean(axis=0), np.abs(a) * math.sqrt(p / (1 - p) / passes)


def attainable(mean: float, a: float, passes: int, digits: int = 4) -> bool:
    """Say whether some number of kept passes at p = 0.5 gives this mean to so many digits."""
    near = round(mean / (2 * a) * passes)
    return any(round(2 * a * kept / passes, digits) == mean for kept in (near - 1, near, near + 1))


def weight_gradients(x: Array, grad_out: float) -> dict[str, Array]:
    """Return the gradients of the weights around the four units, for inputs x and one output.

    The units are a = relu(x @ w1 + b1), all of them active, and the output is dropout(a) @ w2.
    """
    dropped, mask = dropout_forward(A, 0.5, mask=MASK)
    grad_a = dropout_backward(GRADIENT, mask, 0.5)
    return {"w1": np.outer(x, grad_a), "b1": grad_a, "w2": dropped * grad_out}


def main() -> None:
    dropped, mask = dropout_forward(A, 0.5, mask=MASK)
    print("forward ", dropped)
    print("backward", dropout_backward(GRADIENT, mask, 0.5))

    print("\ngradients of the weights, x = [1, -2]")
    for name, gradient in weight_gradients(np.array([1.0, -2.0]), grad_out=0.5).items():
        print(f"{name}      ", str(gradient).replace("\n", "\n         "))

    a = [Fraction("0.36"), Fraction("0.13"), Fraction("0.42"), Fraction("0.25")]
    mean, variance = exact_moments(a, Fraction(1, 2))
    print("\nover all 16 masks")
    print("mean    ", *mean, "= a" if mean == a else "differs from a")
    print("variance", *variance, "= a^2" if variance == [value**2 for value in a] else "differs from a^2")
    agree = np.allclose(enumerated_moments(A), (A, A**2), rtol=0, atol=1e-12)
    print("float64 ", "the same to 1e-12" if agree else "differs")

    sampled, error = sampled_mean(A, 0.5, passes=1000, key=0)
    print("\nmean of 1,000 passes       ", sampled.round(4))
    print("standard error             ", error.round(4))
    print("off by, in standard errors ", ((sampled - A) / error).round(1))
    print("a tutorial prints          ", PRINTED)
    print("its own code gives         ", RERUN)
    for label, means in (("printed", PRINTED), ("given", RERUN)):
        possible = sum(attainable(mean, unit, passes=1000) for mean, unit in zip(means, A, strict=True))
        print(f"of the means {label}, {possible} of 4 can be the mean of 1,000 passes")


if __name__ == "__main__":
    main()
