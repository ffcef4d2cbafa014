"""Uncertainty: what a model with dropout knows, and does not, from many passes at test time or from one."""

__all__: list[str] = []
