"""Choosing sites: by patterns of names, by kinds, or by a function of the site."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from dropkit._checks import argument_type_error
from dropkit.errors import ArgumentError

if TYPE_CHECKING:
    from dropkit.sites.find import Site

__all__ = ["Selection"]

_WHERE = "a pattern of names, several of them, or a function of a Site"


@dataclass(frozen=True)
class Selection:
    """Which sites are meant.

    Args:
        patterns: Shell-style patterns, one of which must match the site's name or that of its module; None for any.
        kinds: Kinds, of which the site must have one; None for any.
        predicate: What must be true of the site; None for anything.
    """

    patterns: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None
    predicate: "Callable[[Site], Any] | None" = None

    @classmethod
    def of(cls, caller: str, where: Any, kind: Any) -> "Selection":
        """Return what a user's arguments mean, or raise."""
        if isinstance(where, type | Module):
            raise argument_type_error(caller, "where", _WHERE, where, "Choose layers by their names, or by `kind`.")
        predicate = where if callable(where) else None
        patterns = None if predicate is not None else _texts(caller, "where", _WHERE, where)
        return cls(patterns, _texts(caller, "kind", "a kind of sites, or several", kind), predicate)

    @property
    def is_all(self) -> bool:
        """Whether it means all sites."""
        return self == Selection()

    def __contains__(self, site: "Site") -> bool:
        """Whether a site is meant."""
        if self.kinds is not None and site.kind not in self.kinds:
            return False
        names = (site.name, site.path)
        if self.patterns is not None and not any(fnmatchcase(name, each) for name in names for each in self.patterns):
            return False
        return self.predicate is None or bool(self.predicate(site))

    def covers(self, path: str) -> bool:
        """Whether it may mean something that a module draws, as far as the module's name tells."""
        return self.patterns is None or any(fnmatchcase(path, each) for each in self.patterns)

    def mismatch(self, caller: str, sites: "Iterable[Site]") -> ArgumentError:
        """Return the error for a model none of whose sites is meant."""
        known = ", ".join(f"{site.name} ({site.kind})" for site in sites)
        given = [("where", self.patterns or self.predicate), ("kind", self.kinds)]
        shown = " and ".join(f"`{name}` = {_shown(value)}" for name, value in given if value is not None)
        remedy = f"Choose among {known}." if known else "It has none: nothing in it draws dropout."
        return ArgumentError(f"{caller}: {shown} chooses no site of the model. {remedy}")


def _shown(value: Any) -> str:
    if callable(value):
        return str(getattr(value, "__qualname__", repr(value)))
    return repr(value[0]) if len(value) == 1 else repr(list(value))


def _texts(caller: str, name: str, rule: str, value: Any) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None if value is None else (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise argument_type_error(caller, name, rule, value)
    texts = tuple(value)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise argument_type_error(caller, name, rule, value)
    return texts
