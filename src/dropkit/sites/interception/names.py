"""Names of modules, the same with and without the wrappers that training puts around them."""

from collections.abc import Iterator
from types import MappingProxyType

from torch.nn import Module
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["is_dropout_layer", "module_names", "runnable", "unwrapped", "wrapped"]

# Wrappers of PyTorch, whose one child bears the name of the wrapper: that of the child in it.
_WRAPPED = MappingProxyType(
    {
        "DataParallel": "module",
        "DistributedDataParallel": "module",
        "AveragedModel": "module",
        "OptimizedModule": "_orig_mod",
        "FullyShardedDataParallel": "_fsdp_wrapped_module",
        "CheckpointWrapper": "_checkpoint_wrapped_module",
        "OffloadWrapper": "_checkpoint_wrapped_module",
    }
)


def wrapped(module: Module) -> Module | None:
    """Return what a wrapper wraps, or None if the module is no wrapper."""
    for base in type(module).__mro__:
        if base.__module__.partition(".")[0] == "torch" and base.__name__ in _WRAPPED:
            if base.__name__ == "AveragedModel" and type(module).forward is not vars(base)["forward"]:
                return None  # a model of its own, which does something with the average
            found = getattr(module, _WRAPPED[base.__name__], None)
            return found if isinstance(found, Module) else None
    return None


def unwrapped(model: Module) -> Module:
    """Return a model without the wrappers around the whole of it."""
    inner = wrapped(model)
    return model if inner is None else unwrapped(inner)


def runnable(model: Module) -> Module:
    """Return a model without the wrappers around the whole of it, but for one that shards it, and has to gather it."""
    inner = wrapped(model)
    is_sharded = any(base.__name__ == "FullyShardedDataParallel" for base in type(model).__mro__)
    return model if inner is None or is_sharded else runnable(inner)


def module_names(model: Module) -> dict[str, Module]:
    """Return the modules of a model by name: each once, under its first name, without wrappers and their prefixes."""
    return dict(_walk(model, "", set()))


def _walk(module: Module, name: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    inner = wrapped(module)
    if inner is not None:
        yield from _walk(inner, name, seen)
        return
    yield name, module
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def is_dropout_layer(module: Module) -> bool:
    """Tell whether a module is a dropout layer of PyTorch or of dropkit, which gives its site its own name."""
    return isinstance(module, _DropoutNd) or any(
        base.__module__.startswith("dropkit.nn.") for base in type(module).__mro__
    )
