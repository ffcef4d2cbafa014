"""The methods that a study compares, one file each."""

from dropkit.study.methods import dropout, none, weight_decay
from dropkit.study.methods.method import Method, Recipe

__all__ = ["METHODS", "Method", "Recipe"]

METHODS: dict[str, Method] = {method.name: method for method in (none.METHOD, dropout.METHOD, weight_decay.METHOD)}
