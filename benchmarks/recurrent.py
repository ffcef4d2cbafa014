"""What recurrent networks with every dropout on cost on a CPU, against PyTorch's without any.

    python benchmarks/recurrent.py [--quick]

Every row is measured in one process, its sides interleaved; the minimum of many repeats is taken. A bar stands beside
each ratio that has one.
"""

from typing import Any

import torch
from timing import Call, Ratio, minima, report, settle_allocator

import dropkit
from dropkit import kernels

STEPS, BATCH, UNITS = 50, 32, 256
RATES = {
    "LSTM": {
        "input_p": 0.2,
        "recurrent_p": 0.3,
        "output_p": 0.4,
        "update_p": 0.35,
        "zoneout_c": 0.5,
        "zoneout_h": 0.15,
    },
    "GRU": {"input_p": 0.2, "recurrent_p": 0.3, "output_p": 0.4, "update_p": 0.35, "zoneout": 0.15},
}


def trained(network: Any, x: torch.Tensor) -> Call:
    """Return forward and backward of a network."""
    with torch.no_grad():
        grad = torch.randn_like(network(x)[0])

    def run() -> None:
        x.grad = None
        for parameter in network.parameters():
            parameter.grad = None
        network(x)[0].backward(grad)

    return run


def evaluated(network: Any, x: torch.Tensor) -> Call:
    """Return forward of a network in evaluation."""

    def run() -> None:
        with torch.no_grad():
            network.eval()(x)

    return run


def networks(kind: str) -> None:
    """Compare a network with PyTorch's of the same kind."""
    ours, theirs = getattr(dropkit.nn, kind), getattr(torch.nn, kind)
    plain, x = theirs(UNITS, UNITS), torch.randn(STEPS, BATCH, UNITS, requires_grad=True)
    without, update = ours(UNITS, UNITS), ours(UNITS, UNITS, update_p=0.5)
    all_on, untied = (ours(UNITS, UNITS, **RATES[kind], tied=tied) for tied in (True, False))
    calls = [trained(network, x) for network in (all_on, untied, update, without, plain)]
    *found, other = minima(*calls)
    name = f"{kind} {STEPS} steps, batch {BATCH}, {UNITS} units, forward + backward"
    for what, time, bar in zip(
        ("all noise", "all noise, untied", "dropout of the update", "no noise"),
        found,
        (2.0, None, None, None),
        strict=True,
    ):
        report(Ratio(f"{name}, {what}: PyTorch's without", time, other, bar))
    both = minima(evaluated(without, x), evaluated(plain, x))
    report(Ratio(f"{kind} in evaluation: PyTorch's", *both))


def main() -> None:
    """Print the table, for one thread and for two."""
    settle_allocator()
    print(f"dropkit {dropkit.__version__}, torch {torch.__version__}\n{kernels.info()}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)}: microseconds of ours, of the other, and their ratio")
        for kind in RATES:
            networks(kind)


if __name__ == "__main__":
    main()
