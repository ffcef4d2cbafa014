"""The rate that concrete dropout learns, as data grow (Gal, Hron and Kendall 2017, section 4.1).

    python benchmarks/papers/concrete_data_size.py [--quick]

A line, y = 2x + 8 with noise of variance 1, and a network of three hidden layers that gives a mean and a log variance,
as in the authors' demonstration (there of 1,024 units). The authors' numbers of steps end before rates settle: between
1,000 and 2,000 steps of Adam at 1e-3 cannot move the logit of a rate by more than that many thousandths. So here rates
have a larger learning rate of their own, and each size the same many steps. Expected: near one half with the fewest
rows, and falling as rows are added. The authors' notebook, stopped early: 0.40, 0.40, 0.33, 0.24, 0.23, 0.16 at 10, 25,
50, 100, 1,000 and 10,000 rows; their spread of the mean, "epistemic", falls from 1.28 to 0.53.
"""

import argparse
import time

import torch
from torch import Tensor

import dropkit
from dropkit.nn import ConcreteDropout


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw rows of the line."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, generator=generator)
    return x, 2 * x + 8 + torch.randn(count, 1, generator=generator)


def network(width: int, length_scale: float) -> torch.nn.Sequential:
    """Return a network whose every layer drops its inputs."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for count, out in ((1, width), (width, width), (width, width), (width, 2)):
        layers += [ConcreteDropout(torch.nn.Linear(count, out), length_scale=length_scale), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def negative_log_likelihood(out: Tensor, y: Tensor) -> Tensor:
    """Return the mean over rows, up to a constant."""
    mean, log_variance = out.unbind(-1)
    return 0.5 * ((y[:, 0] - mean).square() * torch.exp(-log_variance) + log_variance).mean()


def train(model: torch.nn.Sequential, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """Train; return the mean hidden rate after three quarters of the steps and at the end."""
    rates = [value for name, value in model.named_parameters() if name.endswith("p_logit")]
    others = [value for name, value in model.named_parameters() if not name.endswith("p_logit")]
    optimiser = torch.optim.Adam([{"params": others, "lr": 1e-3}, {"params": rates, "lr": 1e-2}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 2 * (1 - step / steps)))
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(steps):
        batch = torch.randint(len(x), (min(100, len(x)),), generator=generator)
        loss = negative_log_likelihood(model(x[batch]), y[batch]) + dropkit.nn.regularization(model, len(x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step + 1 in (3 * steps // 4, steps):
            found.append(sum(float(model[number].p) for number in (2, 4, 6)) / 3)
    return found


@torch.no_grad()
def prediction(model: torch.nn.Sequential, samples: int = 100) -> tuple[float, float]:
    """Return the root mean squared error on new rows, and the spread of the mean over draws of the noise."""
    x, y = rows(1000, 99)
    for layer in model:
        if isinstance(layer, ConcreteDropout):
            layer.switch = "on"
    means = torch.stack([model(x)[:, :1] for _ in range(samples)])
    return float((means.mean(0) - y).square().mean().sqrt()), float(means.std(0).mean())


def main() -> None:
    """Print a line for every number of rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a narrower network, fewer steps and sizes")
    quick = parser.parse_args().quick
    width, steps = (64, 1000) if quick else (128, 1500)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{width} units, {steps} steps, length scale 1e-2")
    print(f"{'rows':>6} {'hidden p at 3/4':>16} {'at the end':>11} {'RMSE':>6} {'epistemic std':>14} {'seconds':>8}")
    for count in (10, 100, 10_000) if quick else (10, 25, 50, 100, 1000, 10_000):
        start = time.perf_counter()
        model = network(width, 1e-2)
        before, after = train(model, *rows(count, 0), steps)
        error, spread = prediction(model)
        seconds = time.perf_counter() - start
        print(f"{count:6} {before:16.3f} {after:11.3f} {error:6.2f} {spread:14.2f} {seconds:8.0f}", flush=True)
    print("authors' notebook, stopped early: 0.40 0.40 0.33 0.24 0.23 0.16 for 10, 25, 50, 100, 1,000 and 10,000 rows")


if __name__ == "__main__":
    main()
