"""Label smoothing (Szegedy et al. 2016, section 7): a share ε of the target goes to all classes alike, in training."""

from dropkit._checks import Number
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHOD"]

METHOD = Method(
    name="label_smoothing",
    title="label smoothing",
    symbol="ε",
    strengths=(0.03, 0.1, 0.01, 0.003, 0.2, 0.3, 0.001, 0.4),
    recipe=lambda share: Recipe(label_smoothing=share),
    domain=Number(0.0, 1.0, open_low=True, open_high=True),
    log_axis=True,
    needs="classes",
)
