"""How near one pass of moments comes to ten thousand sampled passes, and what each costs.

    python benchmarks/moments.py [--quick] [--sets diabetes boston ...]

Networks of one and two hidden layers of 50 units, with dropout before every layer, are trained on the diabetes data of
scikit-learn and on those sets of UCI that are installed (see ``benchmarks/uci.py``), on the first published split; and
convolutional ones on scikit-learn's digits. A row compares standard deviations on the test part: their mean ratio, the
mean and median relative error and the correlation, beside the mean relative error of 50 sampled passes. The bar is on
the mean relative error.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dropkit

RATES, HIDDEN = (0.05, 0.1, 0.2), ((50,), (50, 50))
BAR = 0.15


@dataclass(frozen=True)
class Row:
    """What was found for one network: errors are relative ones of standard deviations, times in seconds."""

    name: str
    ratio: float
    error: float
    median: float
    correlation: float
    sampled_error: float  # that of 50 passes
    mean_error: float  # of the means, in standard deviations
    one_call: float
    one_pass: float

    def __str__(self) -> str:
        met = "met" if self.error <= BAR else "MISSED"
        times = f"{1e3 * self.one_call:8.2f} {1e3 * self.one_pass:8.3f} {50e3 * self.one_pass:8.2f}"
        found = f"{self.ratio:6.3f} {self.error:6.3f} {self.median:6.3f} {self.correlation:6.3f}"
        return f"{self.name:30} {found} {self.sampled_error:8.3f} {self.mean_error:8.3f} {times}  bar {BAR} {met}"


HEADER = (
    f"{'network':30} {'ratio':>6} {'error':>6} {'median':>6} {'corr.':>6} {'50 err.':>8} {'mean':>8} {'call ms':>8} "
    f"{'pass ms':>8} {'50 ms':>8}"
)


def diabetes() -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs and targets to train on, and test inputs, standardised."""
    from sklearn.datasets import load_diabetes

    inputs, targets = load_diabetes(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).numpy()
    count = round(0.9 * len(inputs))
    return standardised(inputs, targets, order[:count], order[count:])


def published(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of a set of UCI, in its first published split."""
    from regression.data import SETS, splits

    inputs, targets = SETS[name].load()
    return standardised(inputs, targets, *splits(len(inputs), 1)[0])


def standardised(inputs: Any, targets: Any, train: Any, test: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return parts of a table, standardised by the rows to train on."""
    x, y = torch.tensor(inputs).float(), torch.tensor(targets).float()[:, None]
    x = (x - x[train].mean(0)) / x[train].std(0)
    return x[train], (y[train] - y[train].mean(0)) / y[train].std(0), x[test]


def trained(p: float, hidden: tuple[int, ...], inputs: Tensor, targets: Tensor, epochs: int) -> nn.Sequential:
    """Return a network with dropout before every layer, trained on the squared error."""
    torch.manual_seed(0)
    sizes, layers = (inputs.shape[1], *hidden), []
    for before, after in zip(sizes, hidden, strict=False):
        layers += [nn.Dropout(p), nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Dropout(p), nn.Linear(sizes[-1], 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return model


def sampled(model: nn.Module, inputs: Tensor, passes: int) -> Tensor:
    """Return so many passes of a model whose rows do not depend on one another, of shape (passes, B, ...)."""
    at_once = max(1, 200_000 // inputs.numel())
    was_training, found = model.training, []
    with torch.no_grad():
        model.train()
        for first in range(0, passes, at_once):
            count = min(at_once, passes - first)
            repeated = inputs.repeat(count, *(1,) * (inputs.dim() - 1))
            found.append(model(repeated).unflatten(0, (count, len(inputs))))
        model.train(was_training)
    return torch.cat(found).double()


def compare(name: str, model: nn.Module, inputs: Tensor, passes: int = 10_000) -> Row:
    """Compare the moments of a model's outputs with those of sampled passes."""
    propagate = dropkit.uncertainty.moments(model)
    found = propagate(inputs)
    std, mean = found.std.double(), found.mean.double()
    samples = sampled(model, inputs, passes)
    reference, few = samples.std(0), samples[:50].std(0)
    relative = (std / reference - 1).abs()
    correlation = torch.corrcoef(torch.stack([std.flatten(), reference.flatten()]))[0, 1]
    with torch.no_grad():
        model.train()
        one_pass = shortest(lambda: model(inputs))
    return Row(
        name,
        float((std / reference).mean()),
        float(relative.mean()),
        float(relative.median()),
        float(correlation),
        float((few / reference - 1).abs().mean()),
        float(((mean - samples.mean(0)).abs() / reference).mean()),
        shortest(lambda: propagate(inputs)),
        one_pass,
    )


def shortest(call: Callable[[], object], repeats: int = 30) -> float:
    """Return the shortest time of several calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def dense(name: str, epochs: int, passes: int) -> Iterator[Row]:
    """Yield the rows of one set."""
    train_inputs, targets, inputs = diabetes() if name == "diabetes" else published(name)
    for hidden in HIDDEN:
        for p in RATES:
            sizes = "-".join(map(str, (train_inputs.shape[1], *hidden, 1)))
            model = trained(p, hidden, train_inputs, targets, epochs)
            yield compare(f"{name} {sizes}, p = {p}", model, inputs, passes)


def convolutional(epochs: int, passes: int) -> Iterator[Row]:
    """Yield rows of convolutional networks on the digits of scikit-learn, whose outputs are logits."""
    from sklearn.datasets import load_digits

    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 8 - 1
    for name, layers in _CONVOLUTIONAL.items():
        torch.manual_seed(0)
        model = layers()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(epochs):
            for batch in torch.randperm(1500).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
        yield compare(name, model, images[1500:1532], passes)


def _blocks(first: nn.Module, second: nn.Module) -> list[nn.Module]:
    return [
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), first,
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), second,
    ]  # fmt: skip


_CONVOLUTIONAL: dict[str, Callable[[], nn.Sequential]] = {
    "CNN, dropout in the head": lambda: nn.Sequential(
        *_blocks(nn.Identity(), nn.Flatten()), nn.Dropout(0.2), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(64, 10),
    ),
    "CNN, dropped channels": lambda: nn.Sequential(
        *_blocks(nn.Dropout2d(0.2), nn.Dropout2d(0.2)), nn.Flatten(), nn.Linear(512, 10)
    ),
    "CNN, dropped pixels": lambda: nn.Sequential(
        *_blocks(nn.Dropout(0.2), nn.Dropout(0.2)), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ),
}  # fmt: skip


def main() -> None:
    from regression.data import SETS, NotInstalledError

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="train less")
    sets = ("diabetes", *SETS)
    parser.add_argument("--sets", nargs="*", choices=sets, default=sets, help="which sets, or none (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER)
    passes = 1000 if options.quick else 10_000
    for name in options.sets:
        try:
            for row in dense(name, 20 if options.quick else 200, passes):
                print(row, flush=True)
        except NotInstalledError as error:
            print(f"{name} left out: {error}")
    for row in convolutional(2 if options.quick else 8, passes):
        print(row, flush=True)


if __name__ == "__main__":
    main()
