"""The methods that a study compares, one file each; those of the registry of layers share one."""

from dropkit.study.methods import (
    batch_norm,
    brightness,
    crop,
    dropout,
    dropout_after_norm,
    dropout_before_norm,
    dropout_decay,
    dropout_max_norm,
    dropout_noise,
    dropout_shift,
    flip,
    input_noise,
    l1,
    label_smoothing,
    linear,
    max_norm,
    mixup,
    none,
    rotation,
    shift,
    smaller_network,
    variants,
    weight_decay,
)
from dropkit.study.methods.method import Method, Recipe
from dropkit.study.methods.variants import acts_on_weights, noisy

__all__ = ["METHODS", "Method", "Recipe", "acts_on_weights", "noisy"]

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        none,
        dropout,
        weight_decay,
        l1,
        max_norm,
        label_smoothing,
        batch_norm,
        dropout_after_norm,
        dropout_before_norm,
        dropout_decay,
        dropout_max_norm,
        dropout_shift,
        dropout_noise,
        shift,
        rotation,
        crop,
        flip,
        brightness,
        input_noise,
        mixup,
        smaller_network,
        linear,
    )
}
METHODS |= {name: method for name, method in variants.methods().items() if name not in METHODS}
