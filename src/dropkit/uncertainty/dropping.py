"""Running a model with its dropout on and all else as in evaluation, where what runs it decides what is drawn."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import set_stance
from torch.nn import Module

from dropkit._checks import argument_error
from dropkit.errors import ArgumentError, DropkitError
from dropkit.sites.find import Site, Sites, _recorded, find
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.names import module_names, runnable
from dropkit.sites.interception.restoring import restored, set_mode
from dropkit.sites.interception.telling import warn
from dropkit.sites.switching.rewriting import Rewriting

__all__ = ["active_sites", "arrays_refused", "dropping", "nothing_kept", "seen_in_evaluation"]


def active_sites(where: str, model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sites:
    """Return the sites that drop in training, or in any mode; raise where there are none, or nothing is kept."""
    sites, refusal = _sites(where, model, args, kwargs)
    if not sites:
        rule = "a model with active dropout"
        remedy = "Give a layer a rate above 0, or see what dropkit.sites.find lists."
        if refusal is not None:
            remedy = f"In training mode it raises {type(refusal).__name__}: give it what it takes there."
        raise argument_error(where, "model", rule, type(model).__name__, remedy) from refusal
    if all(site.p == 1 for site in sites):
        raise nothing_kept(where, [site.name for site in sites])
    return sites


def _sites(where: str, model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sites, Exception | None]:
    """Return the sites, and what the model raised in training mode if it was seen in evaluation mode alone."""
    try:
        return find(model, *args, **kwargs), None
    except DropkitError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a model makes of inputs without targets
        refusal = error
    return seen_in_evaluation(where, model, args, kwargs), refusal


def seen_in_evaluation(where: str, model: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sites:
    """Return the sites that evaluation mode shows of a model that training mode wants other inputs for."""
    calls = _recorded(runnable(model), False, args, dict(kwargs))
    could = [site for site in calls if site.kind != "mask" and (site.p is None or site.p > 0)]
    if could:
        warn(
            f"{where}: the model does not run on these inputs in training mode, so dropout that it leaves out in "
            f"evaluation does not drop. These sites do: {', '.join(site.name for site in could)}."
        )
    return Sites(replace(site, in_train=False, in_eval=site.in_train) for site in could)


def nothing_kept(where: str, names: Iterable[str]) -> ArgumentError:
    """Return the error about sites of these names, all of which drop everything."""
    what = f"of what reaches {', '.join(sorted(names))} nothing is kept (p = 1), so that all passes would be equal"
    return ArgumentError(f"{where}: {what}. Give a site a rate below 1.")


def arrays_refused(where: str, leaves: Iterable[Any]) -> ArgumentError | None:
    """Return the error about inputs that are arrays of NumPy; None if a tensor is among them, or no array."""
    kinds = {kind for leaf in leaves for kind in (Tensor, np.ndarray) if isinstance(leaf, kind)}
    if kinds != {np.ndarray}:
        return None
    remedy = "Give torch.as_tensor(array)."
    return argument_error(where, "inputs", "tensors of PyTorch", "arrays of NumPy", remedy)


@contextmanager
def dropping(model: Module, sites: Iterable[Site]) -> Iterator[None]:
    """Put the modules that draw in the mode in which they do, and all others in evaluation mode, meanwhile.

    Calls that were seen to drop in neither mode, for training was not seen, are told to.

    Afterwards everything is as it was: modes, buffers, gradients and random generators.
    """
    modules = module_names(model)
    unseen = {site.name: site for site in sites if not (site.in_train or site.in_eval)}
    turned_on = attached(model, Rewriting("on", unseen, unseen), is_eager=True) if unseen else nullcontext()
    with restored(model), torch.no_grad(), set_stance("force_eager"), turned_on:
        set_mode(model, training=False)
        for site in sites:
            modules[site.path].training = site.in_train
        yield
