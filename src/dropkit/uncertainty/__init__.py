"""Uncertainty: what a model with dropout knows, and does not, from many passes at test time or from one."""

from dropkit.uncertainty.metrics import (
    BrierDecomposition,
    Detection,
    IntervalScores,
    RiskCoverage,
    brier_decomposition,
    brier_score,
    calibration_error,
    detection,
    gaussian_negative_log_likelihood,
    interval_scores,
    mixture_negative_log_likelihood,
    negative_log_likelihood,
    risk_coverage,
)

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
