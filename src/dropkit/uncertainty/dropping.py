"""Running a model with its dropout on and all else as in evaluation, where what runs it decides what is drawn."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.compiler import set_stance
from torch.nn import Module

from dropkit._checks import argument_error
from dropkit.errors import ArgumentError
from dropkit.sites.find import Site, Sites, find
from dropkit.sites.interception.names import module_names
from dropkit.sites.interception.restoring import restored, set_mode

__all__ = ["active_sites", "dropping", "nothing_kept"]


def active_sites(where: str, model: Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Sites:
    """Return the sites that drop in training, or in any mode; raise where there are none, or nothing is kept."""
    sites = find(model, *args, **kwargs)
    if not sites:
        remedy = "Give a layer a rate above 0, or see what dropkit.sites.find lists."
        raise argument_error(where, "model", "a model with active dropout", type(model).__name__, remedy)
    if all(site.p == 1 for site in sites):
        raise nothing_kept(where, [site.name for site in sites])
    return sites


def nothing_kept(where: str, names: Iterable[str]) -> ArgumentError:
    """Return the error about sites of these names, all of which drop everything."""
    what = f"of what reaches {', '.join(sorted(names))} nothing is kept (p = 1), so that all passes would be equal"
    return ArgumentError(f"{where}: {what}. Give a site a rate below 1.")


@contextmanager
def dropping(model: Module, sites: Iterable[Site]) -> Iterator[None]:
    """Put the modules that draw in the mode in which they do, and all others in evaluation mode, meanwhile.

    Afterwards everything is as it was: modes, buffers, gradients and random generators.
    """
    modules = module_names(model)
    with restored(model), torch.no_grad(), set_stance("force_eager"):
        set_mode(model, training=False)
        for site in sites:
            modules[site.path].training = site.in_train
        yield
