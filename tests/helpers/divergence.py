"""The exact divergence of N(1, alpha) from a log-uniform prior, by two ways that share nothing."""

import itertools

import numpy as np
from scipy import integrate, special, stats


def exact_kl(log_alpha: float) -> float:
    """Sum over a Poisson law: a squared normal of mean m is a gamma variable of a Poisson number of terms."""
    rate = 0.5 * np.exp(-log_alpha)
    spread = 40 * np.sqrt(rate) + 40
    k = np.arange(max(0, int(rate - spread)), int(rate + spread))
    return 0.5 * float(stats.poisson.pmf(k, rate) @ special.digamma(k + 0.5) - special.digamma(0.5))


def integrated_kl(log_alpha: float) -> float:
    """Integrate the definition, with the constant that makes it vanish at alpha = infinity."""
    deviation = np.exp(0.5 * log_alpha)

    def integrand(z: float) -> float:
        return stats.norm.pdf(z) * np.log(abs(1 + deviation * z))

    pole = -1 / deviation
    ends = sorted({-40.0, float(np.clip(pole, -40, 40)), 40.0})
    parts = [
        integrate.quad(integrand, low, high, epsabs=1e-11, epsrel=1e-11, limit=400)[0]
        for low, high in itertools.pairwise(ends)
    ]
    return sum(parts) - 0.5 * log_alpha + 0.5 * (np.euler_gamma + np.log(2))
