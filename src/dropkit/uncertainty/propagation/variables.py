"""Random tensors: a mean, and where the deviations from it come from."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from dropkit.uncertainty.propagation.gaussian import Response

__all__ = ["FEATURE_MAP_RANK", "VECTOR_RANK", "Noise", "Sources", "Variable", "columns", "widened"]

FEATURE_MAP_RANK, VECTOR_RANK = 32, 2048
_SWEEPS = 2  # of subspace iteration
_Linear = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Noise:
    """Uncorrelated numbers of mean 0 and variance 1, one for each element of an example.

    Args:
        rate: The probability of the lower of two values that each has, if it is not to be taken for Gaussian; else 0.
        users: The variables that depend on it by `Variable.fresh`.
        first: The number of its first source, if each number has one.
        basis: Directions of the numbers of every example that have sources of their own, as a tensor of shape
            (B, n, directions) with orthonormal columns, and the number of the first of these; None if there are none.
    """

    rate: float = 0.0
    users: "WeakSet[Variable]" = field(default_factory=WeakSet)
    first: int | None = None
    basis: tuple[Tensor, int] | None = None

    @property
    def has_sources(self) -> bool:
        """Whether some of it has."""
        return self.first is not None or self.basis is not None


class Variable:
    """A random tensor ``mean + sum_k factors[k] z[k] + sum_n fresh[n] n + e``, for every example of the batch.

    The z are uncorrelated, of mean 0 and variance 1, and shared by all variables of one pass: from them follows how
    two variables are correlated, such as the two sides of a residual connection. The e are uncorrelated with one
    another and with all else. Noise that so far went through elementwise functions alone is fresh. It takes sources
    when it meets another function: one for each element if no other variable depends on it, or fewer if what a linear
    map makes of it has fewer elements.

    Args:
        mean: Tensor of shape (B, ...).
        factors: Tensor of shape (K, B, ...): the first K sources; later ones have factors of 0.
        private: The variances of the e, of shape (B, ...); None where there is none.
        fresh: Factors of noise of the elements, of shape (B, ...).

    Attributes:
        origin: How it was made, for functions that better look behind it (see `origins`); known until its fresh noise
            takes sources.
    """

    __slots__ = ("__weakref__", "factors", "fresh", "mean", "origin", "private")

    def __init__(
        self,
        mean: Tensor,
        factors: Tensor | None = None,
        private: Tensor | None = None,
        fresh: Mapping[Noise, Tensor] = MappingProxyType({}),
    ) -> None:
        self.mean = mean
        self.factors = mean.new_zeros((0, *mean.shape)) if factors is None else factors
        self.private = private
        self.origin: Any = None
        self.fresh = dict(fresh)
        for noise in self.fresh:
            noise.users.add(self)

    @property
    def is_random(self) -> bool:
        """Whether anything of it is."""
        return len(self.factors) > 0 or bool(self.fresh) or self.private is not None

    @property
    def event(self) -> torch.Size:
        """The shape of one example."""
        return self.mean.shape[1:]

    @property
    def variance(self) -> Tensor:
        """The variance of every element."""
        uncorrelated = [] if self.private is None else [self.private]
        return sum((*uncorrelated, *(factor.square() for factor in self.fresh.values())), self.factors.square().sum(0))

    def covariance(self) -> Tensor:
        """Return the covariance of an example's n elements, of shape (B, n, n)."""
        flat = self.factors.reshape(*self.factors.shape[:2], math.prod(self.event))
        shared = torch.einsum("kbi,kbj->bij", flat, flat)
        rest = self.variance - self.factors.square().sum(0)
        return shared + torch.diag_embed(rest.reshape(len(rest), flat.shape[-1]))

    def scaled(self, factor: Any) -> tuple[Tensor, Tensor | None, dict[Noise, Tensor]]:
        """Return all but the mean, for each element multiplied with a factor."""
        if isinstance(factor, float) and factor == 1:
            return self.factors, self.private, self.fresh
        private = None if self.private is None else factor**2 * self.private
        return factor * self.factors, private, {noise: factor * own for noise, own in self.fresh.items()}

    def padded(self, count: int) -> Tensor:
        """Return the factors of so many sources."""
        if len(self.factors) == count:
            return self.factors
        found = self.factors.new_zeros((count, *self.mean.shape))
        found[: len(self.factors)] = self.factors
        return found


@dataclass
class Sources:
    """What all variables of one pass share: how many sources there are, and how many there may be.

    Args:
        rank: Most sources that a variable of more elements than that has; None for `FEATURE_MAP_RANK` on feature maps,
            which are tensors of three axes or more, and for `VECTOR_RANK` elements that vectors may have.
        where: Tells which module runs.
        count: How many sources there are.
        rates: Of the sources that have two values, the probability of the lower one, by number.
        neglected: What covariances were neglected, as `Moments` tells it.
    """

    rank: int | None
    where: Callable[[], str]
    count: int = 0
    rates: dict[int, float] = field(default_factory=dict)
    neglected: dict[str, float] = field(default_factory=dict)
    _live: WeakSet[Variable] = field(default_factory=WeakSet)

    def limit(self, event: torch.Size) -> int:
        """Return how many elements a variable of this shape may have whose noise takes sources for each."""
        if self.rank is not None:
            return self.rank
        return VECTOR_RANK if len(event) < 2 else FEATURE_MAP_RANK

    def variable(
        self,
        mean: Tensor,
        factors: Tensor | None = None,
        private: Tensor | None = None,
        fresh: Mapping[Noise, Tensor] = MappingProxyType({}),
    ) -> Variable:
        """Return a variable that is kept in step with the sources."""
        made = Variable(mean, factors, private, fresh)
        self._live.add(made)
        return made

    def add(self, variable: Variable, columns: Tensor) -> None:
        """Add noise of new sources, as factors of shape (new, B, ...)."""
        variable.factors = torch.cat([variable.padded(self.count), columns])
        self.count += len(columns)

    def add_uncorrelated(self, variable: Variable, variance: Tensor) -> None:
        """Add noise that is uncorrelated between elements; private where they are too many to have sources."""
        if math.prod(variable.event) > self.limit(variable.event):
            variable.private = variance if variable.private is None else variable.private + variance
        else:
            self.add_fresh(variable, Noise(), variance.sqrt())

    def add_fresh(self, variable: Variable, noise: Noise, factor: Tensor) -> None:
        """Add noise that other variables may depend on, too."""
        variable.fresh[noise] = factor
        noise.users.add(variable)

    def settle(self, variable: Variable) -> None:
        """Give sources to the fresh noise of a variable."""
        self._merge(variable)
        self._settle(variable, list(variable.fresh))

    def _merge(self, variable: Variable) -> None:
        """Take fresh noise that no other variable depends on as if it were one; what made the variable is no other."""
        if variable.fresh:
            variable.origin = None
        own = [n for n in variable.fresh if not n.has_sources and not n.rate and len(n.users) == 1]
        if len(own) > 1:
            merged = sum((variable.fresh.pop(noise).square() for noise in own), variable.mean.new_zeros(()))
            self.add_fresh(variable, Noise(), merged.sqrt())

    def _settle(self, variable: Variable, noises: list[Noise]) -> None:
        """Turn factors of noise into factors of sources."""
        size = math.prod(variable.event)
        for noise in noises:
            if noise.first is None:
                noise.first, self.count = self.count, self.count + size
                if noise.rate:
                    self.rates |= dict.fromkeys(range(noise.first, self.count), noise.rate)
        if noises:
            variable.factors = variable.padded(self.count).clone()  # which other variables may have, too
        for noise in noises:
            factor = variable.fresh.pop(noise).reshape(-1, 1, size)
            noise.users.discard(variable)
            rest = torch.eye(size, dtype=factor.dtype, device=factor.device)
            if noise.basis is not None:
                basis, first = noise.basis
                columns = (basis.mT * factor).movedim(1, 0)
                variable.factors[first : first + len(columns)] = columns.reshape(-1, *variable.mean.shape)
                rest = rest - basis @ basis.mT
            block = slice(noise.first, (noise.first or 0) + size)
            variable.factors[block] = (rest * factor).movedim(1, 0).reshape(size, *variable.mean.shape)

    def transformed(self, variable: Variable, response: Response) -> Variable:
        """Return an elementwise function of a variable, taken for Gaussian; moments are computed in float64."""
        if not variable.is_random:
            mean = variable.mean.double()
            return self.variable(response(mean, torch.zeros_like(mean))[0].to(variable.mean.dtype))
        if any(noise.rate for noise in variable.fresh):
            self.settle(variable)
        dtype, variance = variable.mean.dtype, variable.variance.double()
        mean, gain, after = response(variable.mean.double(), variance)
        places = [place for place in self.rates if place < len(variable.factors)]
        if places:
            effects, mean, gain, after = self._followed(variable, response, variance, places)
            made = self.variable(mean.to(dtype), *variable.scaled(gain.to(dtype)))
            made.factors[places] = effects.to(dtype)
        else:
            made = self.variable(mean.to(dtype), *variable.scaled(gain.to(dtype)))
        self.add_uncorrelated(made, (after - made.variance).clamp_min(0).to(dtype))
        return made

    def _followed(
        self, variable: Variable, response: Response, variance: Tensor, places: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the moments of a function that follows sources of two values from one to the other.

        Given one of them, all others are taken for Gaussian. Mean, gain and variance are those given the one that
        matters most to an element.
        """
        shape = (-1, *(1,) * variable.mean.dim())
        factors = widened(variable.factors[places])
        rates = torch.tensor([self.rates[place] for place in places], dtype=torch.float64).reshape(shape).to(factors)
        odds, mean = (rates / (1 - rates)).sqrt(), variable.mean.to(factors)
        rest = (variance.to(factors) - factors**2).clamp_min(0)
        high, low = (response(mean + factors * value, rest) for value in (odds, -1 / odds))
        effects = (high[0] - low[0]) * (rates * (1 - rates)).sqrt()
        first, gain, second = ((1 - rates) * kept + rates * dropped for kept, dropped in zip(high, low, strict=True))
        most = factors.abs().argmax(0, keepdim=True)
        first, gain, second = (each.gather(0, most)[0].double() for each in (first, gain, second + effects**2))
        return effects, first, gain, second

    def mapped(self, variable: Variable, mean: Tensor, linear: _Linear, squared: _Linear) -> Variable:
        """Return a linear map of a variable, each of whose outputs may depend on any inputs.

        Args:
            variable: What is mapped.
            mean: The mean of the result.
            linear: The map, without an offset.
            squared: The map with the squares of its weights, which maps variances of uncorrelated inputs.
        """
        self._merge(variable)
        size, limit = math.prod(mean.shape[1:]), self.limit(mean.shape[1:])
        narrowed = [
            noise for noise in variable.fresh
            if not noise.has_sources and size < math.prod(variable.event) and size <= limit
        ]  # fmt: skip
        self._settle(variable, [noise for noise in variable.fresh if noise not in narrowed])
        made = self._mapped(variable, mean, linear, squared)
        for noise in narrowed:
            basis, root = _root(variable.fresh[noise], linear, mean)
            noise.basis = basis, self.count
            self.add(made, root)
        return made

    def _mapped(self, variable: Variable, mean: Tensor, linear: _Linear, squared: _Linear) -> Variable:
        """Return a linear map of all but the fresh noise."""
        noise = variable.private
        if noise is None:
            return self.variable(mean, columns(linear, variable.factors, mean))
        if math.prod(mean.shape[1:]) <= self.limit(mean.shape[1:]):
            made = self.variable(mean, columns(linear, variable.factors, mean))
            self.add(made, _root(noise.sqrt(), linear, mean)[1])
            return made
        first = self.count
        self._share(variable, noise, linear)
        factors = columns(linear, variable.factors, mean)
        rest = (squared(noise) - factors[first:].square().sum(0)).clamp_min(0)
        made = self.variable(mean, factors, rest)
        self._compress(made)
        self.neglect(made.variance - made.factors.square().sum(0), made.variance)
        return made

    def neglect(self, part: Tensor, whole: Tensor) -> None:
        """Note that covariances are neglected among noise of this variance, of so much in all."""
        share = float(part.sum() / whole.sum().clamp_min(torch.finfo(whole.dtype).tiny))
        where = self.where()
        self.neglected[where] = max(share, self.neglected.get(where, 0.0))

    def _share(self, variable: Variable, noise: Tensor, linear: _Linear) -> None:
        """Turn that part of the private noise into sources which the map makes most of, by subspace iteration."""
        deviation, size = noise.sqrt(), math.prod(variable.event)
        rank = min(self.rank or FEATURE_MAP_RANK, size)
        generator = torch.Generator().manual_seed(0)  # the user's generators are left alone
        probes = torch.randn((rank, *deviation.shape), generator=generator, dtype=torch.float32).to(deviation)
        transposed = _transposed(linear, deviation)
        for _ in range(_SWEEPS):
            images = torch.func.vmap(lambda x: transposed(linear(deviation * x)))(probes)
            basis, _ = _orthonormal(images.reshape(rank, len(deviation), size).permute(1, 2, 0))
            probes = basis.permute(2, 0, 1).reshape(rank, *deviation.shape)
        shared = deviation * probes
        variable.private = (noise - shared.square().sum(0)).clamp_min(0)
        self.add(variable, shared)

    def _compress(self, variable: Variable) -> None:
        """Keep the main directions of the sources where there are too many; the rest becomes private."""
        limit = self.limit(variable.event)
        if self.count <= limit:
            return
        for each in self._live:
            self.settle(each)  # as long as sources have their numbers
        live = list(self._live)
        flat = [each.padded(self.count).reshape(self.count, len(each.mean), -1) for each in live]
        gram = torch.stack([torch.einsum("kbi,lbi->bkl", each, each) for each in flat]).sum(0)
        basis = torch.linalg.eigh(widened(gram)).eigenvectors[..., -limit:].to(gram)
        for each in live:
            factors = torch.einsum("kb...,bkr->rb...", each.padded(self.count), basis)
            lost = (each.factors.square().sum(0) - factors.square().sum(0)).clamp_min(0)
            each.factors, each.origin = factors, None  # for draws have lost their sources
            each.private = lost if each.private is None else each.private + lost
        self.count, self.rates = limit, {}


def columns(linear: _Linear, factors: Tensor, like: Tensor) -> Tensor:
    """Return a linear map of each of some factors, whose results have the shape of `like`."""
    return torch.func.vmap(linear)(factors) if len(factors) else factors.new_zeros((0, *like.shape))


def _root(deviation: Tensor, linear: _Linear, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return which directions of uncorrelated noise a linear map depends on, and its factors by them.

    There are as many as its result has elements, at most; all of its covariance is kept.
    """
    size = math.prod(like.shape[1:])
    transposed = _transposed(linear, deviation)
    units = torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, 1, *like.shape[1:])
    rows = torch.func.vmap(lambda unit: transposed(unit.expand(like.shape)))(units).flatten(2)
    basis, root = _orthonormal(rows.permute(1, 2, 0))
    return basis, root.movedim(1, 0).reshape(root.shape[1], *like.shape)


def _transposed(linear: _Linear, deviation: Tensor) -> _Linear:
    """Return the transpose of a linear map of noise with standard deviations."""
    pulled = torch.func.vjp(lambda x: linear(deviation * x), torch.zeros_like(deviation))[1]
    return lambda x: pulled(x)[0]


def _orthonormal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal columns that span those of a tensor, and the triangle that makes them these again."""
    basis, root = torch.linalg.qr(widened(x))
    return basis.to(x), root.to(x)


def widened(x: Tensor) -> Tensor:
    """Return a tensor in single precision if it is of less."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
