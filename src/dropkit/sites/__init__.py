"""Sites: every place of a model that draws dropout, whatever draws it."""

from dropkit.sites.address import Addressing, address
from dropkit.sites.find import Site, Sites, find

__all__ = ["Addressing", "Site", "Sites", "address", "find"]
