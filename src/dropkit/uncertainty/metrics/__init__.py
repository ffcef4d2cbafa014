"""How good predictions and their uncertainties are, one file a question; what scikit-learn has is taken from it."""

from dropkit.uncertainty.metrics.calibration import calibration_error
from dropkit.uncertainty.metrics.intervals import IntervalScores, interval_scores
from dropkit.uncertainty.metrics.out_of_distribution import Detection, detection
from dropkit.uncertainty.metrics.scores import (
    BrierDecomposition,
    brier_decomposition,
    brier_score,
    gaussian_negative_log_likelihood,
    mixture_negative_log_likelihood,
    negative_log_likelihood,
)
from dropkit.uncertainty.metrics.selective import RiskCoverage, risk_coverage

__all__ = [
    "BrierDecomposition",
    "Detection",
    "IntervalScores",
    "RiskCoverage",
    "brier_decomposition",
    "brier_score",
    "calibration_error",
    "detection",
    "gaussian_negative_log_likelihood",
    "interval_scores",
    "mixture_negative_log_likelihood",
    "negative_log_likelihood",
    "risk_coverage",
]
