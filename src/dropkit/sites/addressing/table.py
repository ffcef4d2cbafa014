"""What compiled code reads the keys of an addressed model from: tensors, so that no step is compiled anew."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dropkit.functional.address import signed
from dropkit.kernels import fields

__all__ = ["Table"]

_ROWS = 64  # at first; a table that is full is doubled


class Table:
    """The sites that compiled code draws at, and how often modules ran that compiled code runs.

    A row is a site in one of the runs that its module has in an outermost forward. Rows and modules come in while code
    is compiled; values change in place, and graphs that were compiled before go on reading them.

    Args:
        modules: How many modules the model has.
        device: Where the tensors shall be.
    """

    def __init__(self, modules: int, device: torch.device) -> None:
        self.rows: dict[tuple[str, int], int] = {}
        self.positions: dict[str, int] = {}  # of modules among those that are counted
        self._sites: list[str] = []  # of rows
        self.counted = _zeros(modules, device)
        self._first, self._owner, self._run = (_zeros(_ROWS, device) for _ in range(3))

    def keys(self) -> Tensor:
        """Return the keys of all rows in the outermost forward that runs now."""
        return fields.keys(self._first, self.counted[self._owner] + self._run)

    def add_row(self, name: str, run: int, path: str, first: int) -> int:
        """Add a row and return its number.

        Args:
            name: Name of the site.
            run: How often its module ran before in the outermost forward.
            path: Name of the module, which is counted.
            first: What the key is in the step, before runs are counted in.
        """
        row = len(self.rows)
        if row == len(self._first):
            self._double()
        self.rows[name, run] = row
        self._sites.append(name)
        with torch.inference_mode(False), torch.no_grad():
            self._first[row], self._owner[row], self._run[row] = signed(first), self.positions[path], run
        return row

    def add_module(self, path: str, count: int) -> None:
        """Count the runs of a module, which ran before."""
        position = self.positions[path] = len(self.positions)
        self.counted[position] = count

    def counts(self) -> dict[str, int]:
        """Return how often modules ran that are counted here."""
        return dict(zip(self.positions, self.counted.tolist(), strict=False))

    def set_counts(self, counts: Mapping[str, int]) -> None:
        """Let modules have run as often as a mapping tells, or never."""
        _fill(self.counted, [counts.get(path, 0) for path in self.positions])

    def set_step(self, firsts: Mapping[str, int]) -> None:
        """Let the keys of sites be what they are in another step."""
        _fill(self._first, [signed(firsts[name]) for name in self._sites])

    @property
    def sites(self) -> Iterable[str]:
        """Names of the sites that have a row."""
        return self._sites

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.counted.device

    def move(self, device: torch.device) -> None:
        """Move the tensors, with which code is compiled anew."""
        self.counted, self._first, self._owner, self._run = (
            _static(each.to(device)) for each in (self.counted, self._first, self._owner, self._run)
        )

    def _double(self) -> None:
        """Make room, and let what is being compiled be compiled from its beginning."""
        from torch._dynamo.exc import RestartAnalysis

        length, device = len(self._first), self.device
        longer = [torch.cat([each, _zeros(length, device)]) for each in (self._first, self._owner, self._run)]
        self._first, self._owner, self._run = map(_static, longer)
        raise RestartAnalysis(restart_reason="dropkit: a table of keys was full")


def _zeros(length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else nothing outside of it could change them
        return _static(torch.zeros(length, dtype=torch.int64, device=device))


def _static(tensor: Tensor) -> Tensor:
    """Mark a tensor whose memory stays where it is, which a CUDA graph may change in place."""
    torch._dynamo.mark_static_address(tensor)
    return tensor


def _fill(tensor: Tensor, values: list[int]) -> None:
    with torch.no_grad():
        tensor[: len(values)] = torch.tensor(values, dtype=torch.int64, device="cpu")
