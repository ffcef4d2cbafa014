"""The statistics of a study, one file each; all are stated in the plan before the first trial runs."""

from dropkit.study.statistics.bootstrap import Interval, paired_bootstrap
from dropkit.study.statistics.corrected_t import CorrectedTest, corrected_t_test
from dropkit.study.statistics.holm import holm
from dropkit.study.statistics.smallest_effect import smallest_effect

__all__ = ["CorrectedTest", "Interval", "corrected_t_test", "holm", "paired_bootstrap", "smallest_effect"]
