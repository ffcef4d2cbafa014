"""How noisy gradients are under three ways to draw Gaussian weights (Kingma, Salimans and Welling 2015, table 1).

    python benchmarks/papers/local_reparameterization.py [--quick]

One network, 784-100-100-10 of variational linear layers, on the embedded digits; the noise comes from weights drawn
once a batch, from weights drawn for every example, or from outputs drawn by local reparameterisation. The mean
gradient is the same; its variance, summed over the weights of the top and the bottom layer, is not. The paper's
values for its top layer after 10 epochs are 4.9e4, 1.4e4 and 7.8e3, of another network and scale: the order is what
must agree.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import mnist
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, relu

import dropkit
from dropkit.functional import local_reparameterization

WIDTHS, BATCH = (784, 100, 100, 10), 100
Layer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def once_a_batch(x: Tensor, weight: Tensor, variance: Tensor, bias: Tensor) -> Tensor:
    """Draw the weights once."""
    return linear(x, weight + variance.sqrt() * torch.randn_like(weight), bias)


def once_an_example(x: Tensor, weight: Tensor, variance: Tensor, bias: Tensor) -> Tensor:
    """Draw the weights for every example."""
    weights = weight + variance.sqrt() * torch.randn(len(x), *weight.shape)
    return torch.einsum("ni,noi->no", x, weights) + bias


def outputs(x: Tensor, weight: Tensor, variance: Tensor, bias: Tensor) -> Tensor:
    """Draw the outputs."""
    return local_reparameterization(linear, x, weight, variance, bias)


WAYS: dict[str, Layer] = {
    "weights once a batch": once_a_batch,
    "weights once an example": once_an_example,
    "local reparameterisation": outputs,
}


def loss(model: torch.nn.Sequential, x: Tensor, labels: Tensor, way: Layer) -> Tensor:
    """Return the cross-entropy of a batch under one way of drawing."""
    for number, layer in enumerate(model):
        x = relu(x) if number else x
        variance = layer.bounded_log_alpha.exp() * layer.weight.square()
        x = way(x, layer.weight, variance, layer.bias)
    return cross_entropy(x, labels)


def trained(data: mnist.Digits, epochs: int) -> torch.nn.Sequential:
    """Return a network after so many epochs."""
    torch.manual_seed(0)
    layers = (
        dropkit.nn.VariationalLinear(*pair, p=0.5 if number else 0.2) for number, pair in enumerate(pairwise(WIDTHS))
    )
    model = torch.nn.Sequential(*layers)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.images)).split(BATCH):
            total = loss(model, data.images[batch], data.labels[batch], outputs)
            optimiser.zero_grad()
            (total + dropkit.nn.regularization(model, len(data.images))).backward()
            optimiser.step()
    return model


def spread(
    model: torch.nn.Sequential, data: mnist.Digits, way: Layer, draws: int
) -> tuple[list[float], list[float], float]:
    """Return, for the top and the bottom layer, the gradient's variance over draws and its mean's norm; and seconds."""
    x, labels = data.images[:BATCH], data.labels[:BATCH]
    weights = [model[-1].weight, model[0].weight]
    first = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    second = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    quickest = float("inf")
    for _ in range(draws):
        start = time.perf_counter()
        gradients = torch.autograd.grad(loss(model, x, labels, way), weights)
        quickest = min(quickest, time.perf_counter() - start)
        for number, gradient in enumerate(gradients):
            first[number] += gradient
            second[number] += gradient.double().square()
    variances = [float(((b - a.square() / draws) / (draws - 1)).sum()) for a, b in zip(first, second, strict=True)]
    return variances, [float((total / draws).norm()) for total in first], quickest


def main() -> None:
    """Print the table for an early and a later network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer epochs and draws")
    quick = parser.parse_args().quick
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    data = mnist.read(None)
    for epochs in (1, 3) if quick else (1, 10):
        model = trained(data, epochs)
        print(f"\nafter {epochs} epochs; variances are sums over a layer's weights")
        print(f"{'noise':25} {'top layer':>10} {'bottom layer':>13} {'norms of the means':>20} {'ms a step':>10}")
        for name, way in WAYS.items():
            (top, bottom), (top_mean, bottom_mean), seconds = spread(model, data, way, 20 if quick else 200)
            means = f"{top_mean:.3f}  {bottom_mean:.3f}"
            print(f"{name:25} {top:10.2e} {bottom:13.2e} {means:>20} {1e3 * seconds:10.1f}", flush=True)
    print("\npaper, top layer: 4.9e4, 1.4e4, 7.8e3")


if __name__ == "__main__":
    main()
