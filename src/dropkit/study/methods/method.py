"""What a method is: a name, a grid of strengths, and what a strength does to the training of one model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dropkit._checks import Number
from dropkit.study.dataset import Dataset

__all__ = ["INDEPENDENT", "Method", "Recipe"]

# Parts of a recipe that work whatever the inputs are and however the network is built.
INDEPENDENT = ("dropout", "weight_decay", "l1", "max_norm", "label_smoothing")

# Parts that work on rows or images whatever network takes them.
_ACT_ON_ANY = (*INDEPENDENT, "noise", "shift", "rotation", "crop", "flip", "brightness")


@dataclass(frozen=True)
class Recipe:
    """How one model is trained. A method sets the fields that it stands for and leaves the others alone.

    Args:
        dropout: Probability of dropping a hidden unit, or the rate of `variant`, with which one begins that learns it.
        variant: Class of `dropkit.nn` whose noise takes the place of dropout's; empty for dropout itself.
        weight_decay: Decoupled decay of weights; a step multiplies them by 1 - learning rate * decay.
        l1: Factor of the sum of absolute weights in the training loss.
        max_norm: Longest incoming weight vector of a hidden unit.
        label_smoothing: Share of the target that is spread evenly over all classes, in the training loss alone.
        batch_norm: Whether hidden layers normalise over the batch, between product and rectifier.
        dropout_before_norm: Whether dropout comes before the normalisation instead of after the rectifier.
        shift: Images move by up to this many pixels along each axis, drawn anew every epoch.
        rotation: Images turn by up to this many degrees either way, drawn anew every epoch.
        crop: Least share of the sides of a window that is cut out of an image and stretched to the whole, anew every
            epoch; 1 leaves images whole.
        flip: Whether half of the images, drawn anew every epoch, are mirrored left to right.
        brightness: Images are multiplied by 1 minus to 1 plus this, drawn anew every epoch.
        mixup: Alpha of the Beta law from which rows draw their share in a mixture with another row; 0 mixes nothing.
        noise: Standard deviation of Gaussian noise on every input, drawn anew every step.
        width: Hidden widths as a share of the study's; 0 leaves no hidden layer, and the model is fitted, not trained.
        l2: Of a fitted model: factor of the sum of squared weights in the loss. The other fields do nothing to it.
    """

    dropout: float = 0.0
    variant: str = ""
    weight_decay: float = 0.0
    l1: float = 0.0
    max_norm: float = math.inf
    label_smoothing: float = 0.0
    batch_norm: bool = False
    dropout_before_norm: bool = False
    shift: int = 0
    rotation: float = 0.0
    crop: float = 1.0
    flip: bool = False
    brightness: float = 0.0
    mixup: float = 0.0
    noise: float = 0.0
    width: float = 1.0
    l2: float = 0.0

    @property
    def kind(self) -> tuple[object, ...]:
        """What models that train in one pack have in common: their shape, and the costly steps of training."""
        steps = (self.dropout > 0, self.l1 > 0, self.max_norm < math.inf, self.shift > 0, self.noise > 0)
        images = (self.rotation > 0, self.crop < 1, self.flip, self.brightness > 0)
        return (self.width, self.batch_norm, self.dropout_before_norm, self.variant, *steps, *images, self.mixup > 0)

    @property
    def is_linear(self) -> bool:
        """Whether the model has no hidden layer; it is fitted then."""
        return self.width == 0

    def sets_only(self, *parts: str) -> bool:
        """Return whether all other parts are as they are without regularisation."""
        return self == replace(Recipe(), **{part: getattr(self, part) for part in parts})

    def hidden(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Return the hidden widths of the model, given those of the study."""
        return tuple(max(1, round(width * self.width)) for width in widths) if self.width else ()


@dataclass(frozen=True)
class Method:
    """A way to regularise, with the strengths that a study tries.

    Args:
        name: The name in plans, tables and `methods=`.
        title: The name in sentences.
        symbol: What the strength is called, such as ``"p"``; empty where there is none.
        strengths: Candidates, the most useful first; a study takes as many from the front as its budget says, so that
            no method gets more chances than another. A method without a strength has the one candidate 0.
        recipe: From a strength to how a model is trained.
        domain: What a strength may be.
        log_axis: Whether pictures space the strengths logarithmically.
        whole: Whether strengths are whole numbers.
        form: How sentences write the strength. Default: symbol = strength.
        needs: ``"images"``, ``"table"`` or ``"classes"`` where the method fits no other data.
        change: How it changes images, where it does: one of `dataset.IMAGE_CHANGES`. It fits data whose labels survive
            this alone.
        compared: Whether it belongs to the family of tests; a baseline that a network must beat does not.
        on_request: Whether only those who ask for it by name get it: no budget has it, and no report misses it.
    """

    name: str
    title: str
    symbol: str
    strengths: tuple[float, ...]
    recipe: Callable[[float], Recipe]
    domain: Number
    log_axis: bool = False
    whole: bool = False
    form: str = ""
    needs: str = ""
    change: str = ""
    compared: bool = True
    on_request: bool = False

    def grid(self, count: int) -> tuple[float, ...]:
        """Return the first `count` candidates, rising."""
        return tuple(sorted(self.strengths[:count]))

    @property
    def is_independent(self) -> bool:
        """Whether it works whatever the inputs are and however the network is built."""
        return self.recipe(self.strengths[0]).sets_only(*INDEPENDENT)

    def fits(self, data: Dataset) -> bool:
        """Return whether the method can be used on these data."""
        if data.load is not None and not self.is_independent:
            return False
        kinds = {"images": data.image_shape is not None, "classes": data.is_classification}
        kinds["table"] = not kinds["images"]
        survives = not self.change or self.change in data.label_survives
        return survives and (not self.needs or kinds[self.needs])

    @property
    def fits_any_network(self) -> bool:
        """Whether a network of the user's own can be trained with it; or it is a baseline, which has no network."""
        recipe = self.recipe(self.strengths[0])
        return recipe.is_linear or recipe.sets_only(*_ACT_ON_ANY)

    def label(self, strength: float) -> str:
        """Return how sentences and tables write the strength, such as ``"p = 0.5"``."""
        return (self.form or f"{self.symbol} = {{:g}}").format(strength) if self.symbol else ""
