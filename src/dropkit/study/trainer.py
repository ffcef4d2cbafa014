"""Training the trials of a plan: each with its method's recipe, on the split of its seed."""

from collections.abc import Callable, Sequence

from dropkit.study.checkpoint import Checkpoint
from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS, Recipe
from dropkit.study.own import OwnNetwork, train_own
from dropkit.study.packed import Model, Training, train
from dropkit.study.plan import Plan
from dropkit.study.records import Trial
from dropkit.study.splits import Split, outer_split, seed_key, seed_split

__all__ = ["Trainer", "recipe_of"]


def recipe_of(trial: Trial) -> Recipe:
    """Return how a trial is trained; its strength must be settled, or its method need none."""
    return METHODS[trial.method].recipe(trial.strength or 0.0)


class Trainer:
    """Trains packs of a plan's trials; the split of a seed is drawn when first needed, and kept.

    Args:
        plan: The plan.
        data: The rows.
        network: A network of the user's own. Default: the study's.
    """

    def __init__(self, plan: Plan, data: Dataset, network: OwnNetwork | None = None) -> None:
        self.plan, self.data, self.network = plan, data, network
        _, self._rest = outer_split(data, plan.budget, plan.seed)
        self._splits: dict[int, Split] = {}

    def train(
        self,
        trials: Sequence[Trial],
        on_epoch: Callable[[], None] = lambda: None,
        checkpoint: Checkpoint | None = None,
    ) -> list[Training]:
        """Train trials of one kind to the last epoch of the plan.

        Args:
            trials: The members of a pack.
            on_epoch: Called after every epoch.
            checkpoint: Where they are kept after every epoch, and taken up again. Default: nowhere.

        Returns:
            One training a trial, in order.
        """
        models = [Model(seed_key(self.plan.seed, trial.seed), recipe_of(trial)) for trial in trials]
        splits = {model.key: self._split(model.key) for model in models}
        budget = self.plan.budget
        if self.network is None or models[0].recipe.is_linear:
            return train(models, self.data, splits, budget, on_epoch, checkpoint)
        return train_own(self.network, models, self.data, splits, budget, on_epoch, checkpoint)

    def _split(self, key: int) -> Split:
        if key not in self._splits:
            self._splits[key] = seed_split(self.data, self._rest, self.plan.budget, key)
        return self._splits[key]
