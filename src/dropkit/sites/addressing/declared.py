"""Declarations: what was said of the workers of a model, and what of it cannot be meant."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch.nn import Module

from dropkit._checks import argument_error
from dropkit.sites.addressing.distributed import is_distributed
from dropkit.sites.addressing.mesh import ranks
from dropkit.sites.interception.places import Place
from dropkit.sites.interception.telling import warn
from dropkit.sites.samples import current
from dropkit.sites.workers import Workers

__all__ = ["Declared", "check_patterns"]

_LISTED = 8  # sites in a warning
_ALONE = (
    "address: a forward in evaluation mode draws masks, as Monte Carlo dropout does, and counts as a call of the step: "
    "workers that do not make it draw other masks than those that do until the next step. Run it inside "
    "dropkit.sites.samples, where calls are counted apart."
)


class Declared:
    """What is declared of the sites of a model.

    Args:
        workers: What each worker has.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._used: set[str | tuple[str, int]] = set()
        self._sites: dict[str, None] = {}  # those that drew, in their order
        self._has_begun = self._is_over = self._is_evaluation = self._has_told = False

    def axes(self, place: Place) -> Mapping[str, int | None]:
        """Return the axes that workers have parts of at a call that draws, as far as they are declared for it."""
        if not self._is_over:
            self._sites[place.name] = None
        if self._is_evaluation and not self._has_told:
            self._has_told = True
            warn(_ALONE)
        for key, axes in self._workers.shards.items():
            pattern, call = key if isinstance(key, tuple) else (key, place.frame.run)
            if call == place.frame.run and (fnmatchcase(place.name, pattern) or fnmatchcase(place.path, pattern)):
                self._used.add(key)
                return axes
        return {}

    def look(self, model: Module) -> None:
        """Look, before an outermost forward, for what the mesh leaves out, and once for patterns that none matched."""
        self._is_evaluation = not model.training and current() is None and self._workers.mesh.size() > 1
        if not self._has_begun:
            self._has_begun = True
            _warn_of_the_rest(self._workers, model)
        if self._sites and not self._is_over:
            self._is_over = True
            unused = [key for key in self._workers.shards if key not in self._used]
            listed = [*map(repr, list(self._sites)[:_LISTED]), *(["..."] if len(self._sites) > _LISTED else [])]
            if unused:
                warn(
                    f"address: `shards` of Workers has {', '.join(map(repr, unused))}, for which no call was found in "
                    f"the first forward. It drew at {', '.join(listed)}; `dropkit.sites.find` prints the names."
                )


def _warn_of_the_rest(workers: Workers, model: Module) -> None:
    """Warn if a model is spread over workers that the mesh leaves out, which might have parts of plain tensors."""
    known = set(workers.mesh.mesh.flatten().tolist())
    for parameter in model.parameters():
        if not is_distributed(parameter):
            continue
        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]  # a DTensor's
        spread = [number for number, placement in enumerate(placements) if placement.is_shard()]
        if mesh.get_coordinate() is not None and not known.issuperset(ranks(mesh, spread)):
            warn(
                "address: parameters are spread over workers that the mesh of `workers` leaves out: plain tensors that "
                "those have parts of get the same masks, and are not compared. Give Workers the mesh of all workers of "
                "the model; `examples` says which of its dimensions have different examples."
            )
            return


def check_patterns(workers: Workers, names: Iterable[str]) -> None:
    """Raise unless every pattern could be that of a site of a model whose modules have these names."""
    known = list(names)
    for key in workers.shards:
        pattern = key[0] if isinstance(key, tuple) else key
        module = pattern.partition("#")[0].partition("~")[0]
        if not any(fnmatchcase(name, module) for name in known):
            rule = "such that each of its patterns matches a module or a site in it"
            remedy = "`dropkit.sites.find` prints the names of sites."
            raise argument_error("Workers", "shards", rule, pattern, remedy)
