"""Uncertainty: what a model with dropout knows, and does not, from many passes at test time or from one."""

from dropkit.uncertainty.acquisition import (
    BatchSelection,
    bald,
    batch_bald,
    entropy,
    least_confidence,
    margin,
    select,
    variation_ratio,
)
from dropkit.uncertainty.exact import Difference, Enumeration, Subnetworks, exact
from dropkit.uncertainty.figures import (
    draw_detection,
    draw_entropies,
    draw_intervals,
    draw_reliability,
    draw_risk_coverage,
)
from dropkit.uncertainty.mc import MonteCarlo, mc
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
from dropkit.uncertainty.moments import MomentPropagation, Moments, moments
from dropkit.uncertainty.results.result import Result

__all__ = [
    "BatchSelection",
    "BrierDecomposition",
    "Detection",
    "Difference",
    "Enumeration",
    "IntervalScores",
    "MomentPropagation",
    "Moments",
    "MonteCarlo",
    "Result",
    "RiskCoverage",
    "Subnetworks",
    "bald",
    "batch_bald",
    "brier_decomposition",
    "brier_score",
    "calibration_error",
    "detection",
    "draw_detection",
    "draw_entropies",
    "draw_intervals",
    "draw_reliability",
    "draw_risk_coverage",
    "entropy",
    "exact",
    "gaussian_negative_log_likelihood",
    "interval_scores",
    "least_confidence",
    "margin",
    "mc",
    "mixture_negative_log_likelihood",
    "moments",
    "negative_log_likelihood",
    "risk_coverage",
    "select",
    "variation_ratio",
]
