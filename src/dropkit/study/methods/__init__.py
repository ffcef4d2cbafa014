"""The methods that a study compares, one file each; those of the registry of layers share one."""

from collections import UserDict
from collections.abc import Iterator

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
    weight_decay,
)
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHODS", "METHODS_WITH_A_FILE", "Method", "Recipe"]

METHODS_WITH_A_FILE: dict[str, Method] = {
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


class _Methods(UserDict[str, Method]):
    """The methods by name: those with a file, and, once they are asked for, those of the registry of layers.

    The registry imports PyTorch, which much of what a study does can do without.
    """

    has_all = False

    def _join_layers(self) -> None:
        if not self.has_all:
            from dropkit.study.methods import variants

            self.data = variants.methods() | self.data
            self.data = {name: self.data[name] for name in (*METHODS_WITH_A_FILE, *self.data)}
            self.has_all = True

    def __missing__(self, name: str) -> Method:
        self._join_layers()
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self.data or name in list(self)

    def __iter__(self) -> Iterator[str]:
        self._join_layers()
        return iter(self.data)

    def __len__(self) -> int:
        self._join_layers()
        return len(self.data)


METHODS = _Methods(METHODS_WITH_A_FILE)
