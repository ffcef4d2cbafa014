"""What is measured on the confirmed models beside their scores, one file each. It describes and decides nothing."""

from dropkit.study.measures import co_adaptation, degradation, gradient_variance
from dropkit.study.measures.measure import Measure, Measured, Trained, Values

__all__ = ["MEASURES", "Measure", "Measured", "Trained", "Values"]

MEASURES: tuple[Measure, ...] = (degradation.MEASURE, co_adaptation.MEASURE, gradient_variance.MEASURE)
