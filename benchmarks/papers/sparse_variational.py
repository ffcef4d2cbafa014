"""Sparse variational dropout on MNIST, and on MNIST with random labels (Molchanov, Ashukha and Vetrov 2017).

    python benchmarks/papers/sparse_variational.py [--quick] [--mnist FOLDER] [--epochs N]

784-300-10 with ReLU, Adam at 1e-3, batches of 100; over the first half of the epochs the divergence's weight grows
from 0 to 1, over the second half the learning rate falls to 0. That fall matters: while steps jitter, means of
weights that carry nothing stay too far from 0 to be pruned. Reference: a published PyTorch run of this network, 100
epochs, 98.4 % and 35.6 times fewer weights. With random labels a plain network learns the training set by heart; this
one is expected to find no weight worth keeping.
"""

import argparse
import time
from pathlib import Path

import mnist
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import dropkit

BATCH = 100


def network(layer: type[torch.nn.Linear]) -> torch.nn.Sequential:
    """Return 784-300-10 of a kind of layer."""
    return torch.nn.Sequential(layer(784, 300), torch.nn.ReLU(), layer(300, 10))


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the percentage of images that a model names rightly."""
    model.eval()
    return 100 * (model(images).argmax(1) == labels).double().mean().item()


def train(model: torch.nn.Module, data: mnist.Digits, epochs: int) -> None:
    """Train a model, with what its layers ask for, and print a line every tenth of the way."""
    rows, start = len(data.images), time.perf_counter()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: min(1.0, 2 * (1 - epoch / epochs)))

    def objective(images: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        return cross_entropy(model(images), labels) + weight * dropkit.nn.regularization(model, rows)

    compiled = torch.compile(objective) if rows > 10_000 else objective  # a third of the time, after half a minute
    for epoch in range(epochs):
        model.train()
        weight = torch.tensor(min(1.0, 2 * epoch / epochs))
        for batch in torch.randperm(rows).split(BATCH):
            loss = compiled(data.images[batch], data.labels[batch], weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
        if (epoch + 1) % max(epochs // 10, 1) == 0:
            report(f"epoch {epoch + 1:3}", model, data, time.perf_counter() - start)


def report(title: str, model: torch.nn.Module, data: mnist.Digits, seconds: float) -> None:
    """Print accuracies and sparsities."""
    fits, generalises = accuracy(model, data.images, data.labels), accuracy(model, data.test_images, data.test_labels)
    layers = [layer for layer in model if isinstance(layer, dropkit.nn.SparseVariationalLinear)]
    shares = " and ".join(f"{100 * layer.sparsity:.3f}" for layer in layers)
    pruned = f"  pruned {shares} %" if layers else ""
    print(f"  {title}: train {fits:6.2f} %  test {generalises:6.2f} %{pruned}  ({seconds:.0f} s)", flush=True)


def weights(model: torch.nn.Module) -> int:
    """Return how many weights, without biases, are not 0."""
    return sum(int(layer.weight.count_nonzero()) for layer in model if isinstance(layer, torch.nn.Linear))


def digits(data: mnist.Digits, epochs: int) -> None:
    """Train on the labels, prune, and print accuracy and compression."""
    print(f"\nlabels as they are, {epochs} epochs")
    torch.manual_seed(0)
    model = network(dropkit.nn.SparseVariationalLinear)
    dense = weights(model)
    train(model, data, epochs)
    small = dropkit.nn.pruned(model)
    same = (small(data.test_images) - model(data.test_images)).abs().max().item()
    kept = weights(small)
    print(
        f"  pruned model {small[0].in_features}-{small[0].out_features}-{small[2].out_features}: "
        f"{kept:,} of {dense:,} weights are not 0; no output moved by more than {same:.0e}"
    )
    print(f"  accuracy    {accuracy(small, data.test_images, data.test_labels):5.2f} %   (reference 98.4, target 98)")
    print(f"  compression {dense / kept:5.1f} x   (reference 35.6, target 30)")


def random_labels(data: mnist.Digits, rows: int, epochs: int) -> None:
    """Train on labels drawn at random: a plain network, then a sparse one."""
    print(f"\nrandom labels, {rows:,} rows, {epochs} epochs")
    torch.manual_seed(1)
    chosen = data._replace(images=data.images[:rows], labels=torch.randint(10, (rows,)))
    for name, layer in (("plain", torch.nn.Linear), ("sparse", dropkit.nn.SparseVariationalLinear)):
        print(f" {name} network")
        model = network(layer)
        train(model, chosen, epochs)
        with torch.no_grad():
            answers = len(model.eval()(data.test_images).argmax(1).unique())
        kept = weights(dropkit.nn.pruned(model))
        print(f"  different answers given to the test images: {answers}; weights that are not 0: {kept:,}")


def main() -> None:
    """Run both experiments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the embedded digits and few epochs")
    parser.add_argument("--mnist", type=Path, help="folder with the four files of MNIST")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    data = mnist.read(None if options.quick else options.mnist)
    digits(data, 30 if options.quick else options.epochs)
    random_labels(data, *((1000, 40) if options.quick else (5000, options.epochs)))


if __name__ == "__main__":
    main()
