"""The linear model: logistic regression for classes, ridge regression for numbers; fitted, not trained by epochs."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_ITERATIONS", "fit_linear"]

MOST_ITERATIONS = 500  # hundreds are needed only where the penalty hardly matters
_UNSEEN = 0.5  # the share of one row that a class without training rows is given

Array = npt.NDArray[Any]


def fit_linear(inputs: Array, targets: Array, classes: int, l2: float) -> list[npt.NDArray[np.float32]]:
    """Fit a linear model: the lowest mean loss of the rows plus `l2` times the sum of squared weights.

    The bias is not penalised. Of two classes the penalty is on the weights of the log odds. A fit that has not
    converged after `MOST_ITERATIONS` steps of L-BFGS is used as it is: its scores are its own.

    Args:
        inputs: Prepared training rows, of shape (rows, columns).
        targets: Their classes, or their standardised numbers.
        classes: Number of classes; 0 where numbers are predicted.
        l2: Factor of the penalty, above 0.

    Returns:
        Weight of shape (columns, outputs) and bias of shape (1, outputs), as of a network without a hidden layer.

    Examples:
        >>> import numpy as np
        >>> weight, bias = fit_linear(np.array([[-1.0], [1.0]]), np.array([-1.0, 1.0]), 0, 1.0)
        >>> weight.item(), bias.item()  # mean of (1 - w)² plus w²
        (0.5, 0.0)

    References:
        Hoerl and Kennard (1970), "Ridge regression: biased estimation for nonorthogonal problems".
    """
    from threadpoolctl import threadpool_limits

    # Products this small are ten times slower where two threads wait for each other, and one gives the same bits.
    one_thread = threadpool_limits(1, user_api="blas")
    with one_thread, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of slow convergence, and of overflow where the loss then tells
        weight, bias = _logistic(inputs, targets, classes, l2) if classes else _ridge(inputs, targets, l2)
        return [weight.astype(np.float32), bias[None].astype(np.float32)]


def _ridge(inputs: Array, targets: Array, l2: float) -> tuple[Array, Array]:
    from sklearn.linear_model import Ridge

    found = Ridge(alpha=l2 * len(inputs)).fit(inputs.astype(np.float64), targets.astype(np.float64))
    return found.coef_[:, None], np.atleast_1d(found.intercept_)


def _logistic(inputs: Array, targets: Array, classes: int, l2: float) -> tuple[Array, Array]:
    from scipy.special import logsumexp
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((inputs.shape[1], classes)), np.zeros(classes)
    seen = np.unique(targets)
    if len(seen) > 1:
        penalty = 1 / (2 * l2 * len(inputs))
        found = LogisticRegression(C=penalty, max_iter=MOST_ITERATIONS).fit(inputs, targets)
        fitted = seen if len(seen) > 2 else seen[1:]  # of two classes, the log odds are those of the second
        weight[:, fitted], bias[fitted] = found.coef_.T, found.intercept_
    if len(seen) < classes:
        level = logsumexp(inputs @ weight[:, seen] + bias[seen], axis=1).mean()
        bias[np.setdiff1d(np.arange(classes), seen)] = level + np.log(_UNSEEN / len(inputs))
    return weight, bias
