"""Stateless dropout operations for PyTorch, with autograd, `vmap`, `torch.compile` and fake-tensor support."""

from dropkit.functional.dropout import dropout

__all__ = ["dropout"]
