"""Sites: every place of a model that draws dropout, whatever draws it."""

from dropkit.sites.accelerate import Acceleration, accelerate
from dropkit.sites.address import Addressing, address
from dropkit.sites.convert import Plan, Planned, convert
from dropkit.sites.find import Site, Sites, find
from dropkit.sites.inject import inject, record
from dropkit.sites.samples import samples
from dropkit.sites.switch import Switch, switch
from dropkit.sites.workers import Workers

__all__ = [
    "Acceleration",
    "Addressing",
    "Plan",
    "Planned",
    "Site",
    "Sites",
    "Switch",
    "Workers",
    "accelerate",
    "address",
    "convert",
    "find",
    "inject",
    "record",
    "samples",
    "switch",
]
