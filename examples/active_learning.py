"""Active learning on handwritten digits: which images to have labelled, by what Monte Carlo dropout says of them.

    python examples/active_learning.py [--quick]

A small convolutional network begins with 20 labelled images and asks for 30 more, six times over; it is trained anew
each time. It chooses from a pool of 2,000 images: at random, by the entropy of the prediction, by BALD, or by BatchBALD
among the 200 with the highest BALD. Each seed has its own test images, pool, first images, weights and batches, the
same for all ways to choose, so that differences are paired; the intervals are of their mean over seeds. All is in
double precision, so that other processors choose the same images.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from dropkit.study import embedded
from dropkit.uncertainty import batch_bald, mc, select

FIRST, MORE, ROUNDS = 20, 30, 6
POOL, TEST = 2000, 2000
PASSES, STEPS, BATCH = 20, 300, 16
FUNCTIONS, CANDIDATES = 100, 200  # of BatchBALD: a batch tells its passes apart, so that it needs more of them
SEEDS = 8


def digits() -> tuple[Tensor, Tensor]:
    """Return the 5,000 images, 14 by 14, and what they show."""
    images, labels = embedded.mnist()
    pixels = torch.from_numpy(images).double()[:, None] / 255
    return F.avg_pool2d(pixels, 2), torch.from_numpy(labels).long()


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.25), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10),
    ).double()  # fmt: skip


def trained(images: Tensor, labels: Tensor, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# Ways to choose: from a model and the images of a pool to the places of those to be labelled.


def by_chance(model: nn.Module, pool: Tensor, seed: int) -> Tensor:
    return select(torch.rand(len(pool), generator=torch.Generator().manual_seed(seed)), MORE)


def by_entropy(model: nn.Module, pool: Tensor, seed: int) -> Tensor:
    return select(mc(model, PASSES, task="classification", seed=seed)(pool).predictive_entropy, MORE)


def by_bald(model: nn.Module, pool: Tensor, seed: int) -> Tensor:
    return select(mc(model, PASSES, task="classification", seed=seed)(pool).mutual_information, MORE)


def by_batch_bald(model: nn.Module, pool: Tensor, seed: int) -> Tensor:
    result = mc(model, FUNCTIONS, task="classification", masks="shared", seed=seed, keep_samples=True)(pool)
    likely = select(result.mutual_information, CANDIDATES)
    return likely[batch_bald(result.samples[:, likely], MORE, seed=seed).indices]


WAYS: dict[str, Callable[[nn.Module, Tensor, int], Tensor]] = {
    "random": by_chance,
    "entropy": by_entropy,
    "BALD": by_bald,
    "BatchBALD": by_batch_bald,
}


def learned(way: str, images: Tensor, labels: Tensor, seed: int, rounds: int) -> list[float]:
    """Return the accuracy on the test images after each round, the first one included."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, pool = order[:TEST], order[TEST : TEST + POOL]
    known, pool = pool[:FIRST], pool[FIRST:]
    accuracies = []
    for number in range(rounds + 1):
        model = trained(images[known], labels[known], seed)
        with torch.no_grad():
            is_right = model(images[test]).argmax(1) == labels[test]
        accuracies.append(is_right.double().mean().item())
        if number < rounds:
            chosen = WAYS[way](model, images[pool], 1000 * seed + number)
            is_left = torch.ones(len(pool), dtype=torch.bool).index_fill(0, chosen, False)
            known, pool = torch.cat([known, pool[chosen]]), pool[is_left]
    return accuracies


def difference(first: Tensor, second: Tensor) -> str:
    """Write the mean difference over seeds with its 95 % interval, of Student's t."""
    found = stats.ttest_rel(first, second).confidence_interval(0.95)
    return f"{(first - second).mean():+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Active learning by Monte Carlo dropout, against chance.")
    parser.add_argument("--quick", action="store_true", help="2 seeds and 1 round, only to see it run")
    seeds, rounds = (2, 1) if parser.parse_args().quick else (SEEDS, ROUNDS)
    torch.set_num_threads(1)
    images, labels = digits()
    found = {way: torch.tensor([learned(way, images, labels, s, rounds) for s in range(seeds)]) for way in WAYS}

    print(f"accuracy on {TEST} images, mean of {seeds} seeds")
    print("labels" + "".join(f"{way:>11}" for way in WAYS))
    for number in range(rounds + 1):
        print(f"{FIRST + MORE * number:6}" + "".join(f"{each[:, number].mean():11.3f}" for each in found.values()))
    print("\nmore than random, with 95 % intervals over seeds")
    print(f"{'':12}{'at the end':>26}{'mean of all rounds':>26}")
    for way in list(WAYS)[1:]:
        after = [each[:, 1:] for each in (found[way], found["random"])]
        ends = difference(*(each[:, -1] for each in after))
        print(f"{way:12}{ends:>26}{difference(*(each.mean(1) for each in after)):>26}")


if __name__ == "__main__":
    main()
