"""A network of one's own in a study: any `torch.nn.Module`, from a function that builds it."""

from dropkit.study.own.factory import (
    Factory,
    OwnNetwork,
    check_network,
    same_network,
    that_fit_network,
    widths_or_factory,
)
from dropkit.study.own.models import OwnMember, own_members, state_names
from dropkit.study.own.training import own_row_scores, rows_at_once, train_own

__all__ = [
    "Factory",
    "OwnMember",
    "OwnNetwork",
    "check_network",
    "own_members",
    "own_row_scores",
    "rows_at_once",
    "same_network",
    "state_names",
    "that_fit_network",
    "train_own",
    "widths_or_factory",
]
