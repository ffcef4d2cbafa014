"""Sites: every place of a model that draws dropout, whatever draws it."""

from dropkit.sites.find import Site, Sites, find

__all__ = ["Site", "Sites", "find"]
