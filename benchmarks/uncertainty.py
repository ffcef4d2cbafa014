"""What Monte Carlo dropout costs: against one forward, plain loops, and whoever else offers it.

    python benchmarks/uncertainty.py [--rounds 9] [--threads 1] [cnn residual bert memory]

All sides of a row run in one process and take turns, on inputs that are new each time, for some keep what they have
computed. Times are medians over rounds, of what the process computed with one thread, of the clock on the wall with
several; ratios are medians over rounds too, of sides that were timed one after another. baal and torch-uncertainty
take part where they are installed; baal by each of its three ways: the batch repeated, a loop, and a loop with its
caches. Other bars: ``benchmarks/moments.py`` and ``benchmarks/uci.py``.
"""

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peers import baal_dropout, torch_uncertainty_methods, transformers_library
from torch import Tensor, nn

from dropkit import kernels
from dropkit.sites import accelerate
from dropkit.uncertainty import mc

Predict = Callable[[Any], Any]
PASSES = 50


class Residual(nn.Module):
    """A residual network with dropout behind every block."""

    def __init__(self, width: int = 32, depth: int = 6) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Dropout(0.1), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(self.block(width) for _ in range(depth))

    @staticmethod
    def block(width: int) -> nn.Module:
        layers = (nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        return nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for block in self.blocks:
            x = self.drop(F.relu(x + block(x)))
        return self.last(x.mean((2, 3)))


def convolutional() -> nn.Module:
    """Three convolutions, and dropout in the head alone."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(1024, 10)),
    )


def bert() -> nn.Module | None:
    """A small BERT of Hugging Face, with dropout wherever it has any."""
    library = transformers_library()
    if library is None:
        return None
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    return library.BertForSequenceClassification(library.BertConfig(vocab_size=1000, num_labels=10, **sizes))


def images() -> Tensor:
    return torch.randn(32, 3, 32, 32)


def words() -> Tensor:
    return torch.randint(1000, (8, 128))


def loop(model: nn.Module) -> Predict:
    """A plain loop, in which norms are in evaluation mode."""

    def predict(x: Tensor) -> Tensor:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        with torch.no_grad():
            outputs = [model(x) for _ in range(PASSES)]
        model.eval()
        return torch.stack([getattr(output, "logits", output) for output in outputs])

    return predict


def peers(make: Callable[[], nn.Module]) -> dict[str, Predict]:
    """The ways of those that are installed."""
    found: dict[str, Predict] = {}
    if baal_dropout() is not None:
        from baal.bayesian.caching_utils import MCCachingModule
        from baal.bayesian.dropout import MCDropoutModule
        from baal.modelwrapper import ModelWrapper, TrainingArgs

        ways = {"baal, repeated": (False, True), "baal, loop": (False, False), "baal, loop and caches": (True, False)}
        for name, (is_cached, is_repeated) in ways.items():
            model = make().eval()
            model = MCDropoutModule(MCCachingModule(model) if is_cached else model).eval()
            wrapped = ModelWrapper(model, TrainingArgs(use_cuda=False, replicate_in_memory=is_repeated))
            found[name] = lambda x, wrapped=wrapped: wrapped.predict_on_batch(x, iterations=PASSES)
    methods = torch_uncertainty_methods()
    if methods is not None:
        for name, is_repeated in (("torch-uncertainty, repeated", True), ("torch-uncertainty, loop", False)):
            wrapper = methods.mc_dropout(make(), num_estimators=PASSES, on_batch=is_repeated).eval()
            found[name] = lambda x, wrapper=wrapper: without_gradients(wrapper, x)
    return found


def without_gradients(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


Times = dict[str, list[float]]


def timed(sides: dict[str, Predict], inputs: Callable[[], Tensor], rounds: int) -> Times:
    """Return milliseconds of each side in each round, in which they take turns."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: Times = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, predict in sides.items():
            x = inputs()
            start = now()
            predict(x)
            if number:  # the first finds memory, and ours learns the model
                times[name].append(1e3 * (now() - start))
    return times


def ratio(times: Times, one: str, other: str) -> float:
    """Return the median over rounds of how many times as long as another a side took."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def show(times: Times) -> None:
    for name, values in times.items():
        forwards = ratio(times, name, "one forward")
        print(f"  {name:34} {statistics.median(values):10.1f} ms   {forwards:7.2f} forwards")


def verdict(name: str, value: float, rule: str, bar: float) -> None:
    is_met = value <= bar if rule == "<=" else value >= bar
    print(f"  {name:52} {value:7.2f}   bar {rule} {bar:<5} {'met' if is_met else 'MISSED'}", flush=True)


def against_peers(title: str, make: Callable[[], nn.Module], rounds: int, bar: float) -> Times:
    """Measure ours, a forward, a loop, and peers, of which the fastest is compared with ours; return the times."""
    torch.manual_seed(0)
    forward = make().eval()
    others = peers(make)
    ours = {"one forward": lambda x: without_gradients(forward, x), "dropkit": mc(make(), PASSES, seed=0)}
    found = timed({**ours, "loop on PyTorch's dropout": loop(make()), **others}, images, rounds)
    print(f"\n{title}, {PASSES} passes")
    show(found)
    name = "x faster than the fastest peer"
    if others:
        verdict(name, min(ratio(found, each, "dropkit") for each in others), ">=", bar)
    else:
        print(f"  {name:52} not measured: neither baal nor torch-uncertainty is installed")
    return found


def cnn(rounds: int) -> None:
    found = against_peers("CNN with dropout in its head, 32 images", convolutional, rounds, 15)
    verdict("forwards", ratio(found, "dropkit", "one forward"), "<=", 2)


def residual(rounds: int) -> None:
    against_peers("residual CNN with dropout behind each block, 32 images", Residual, max(rounds // 3, 3), 1)


def transformer(rounds: int) -> None:
    model = bert()
    if model is None:
        print("\nBERT: transformers is not installed")
        return
    fast = bert()
    accelerate(fast)
    ours = {"one forward": lambda x: without_gradients(model.eval(), x), "dropkit": mc(bert(), PASSES, seed=0)}
    loops = {"loop on PyTorch's dropout": loop(model), "loop on dropkit's kernels": loop(fast)}
    print(f"\nBERT, 4 layers of 256, 8 sequences of 128, {PASSES} passes")
    found = timed({**ours, **loops}, words, rounds)
    show(found)
    name = "loop on PyTorch's dropout"
    verdict(f"x faster than the {name}", ratio(found, name, "dropkit"), ">=", 1.5)


def memory(_: int) -> None:
    """Compare the most memory that processes have, which differ in nothing but the number of passes."""
    print("\nmemory of a network whose output has 10 classes for each of 8 x 64 x 64 pixels, 1.25 MiB a pass")
    most = {passes: peak(passes) for passes in (0, 50, 1000)}
    for passes, size in most.items():
        print(f"  {passes or 'no':>5} passes: at most {size:7.1f} MiB, {size - most[0]:7.1f} more than one forward")
    verdict("x as much more with 1,000 passes as with 50", (most[1000] - most[0]) / (most[50] - most[0]), "<=", 1.5)


def peak(passes: int) -> float:
    """Return the most memory, in MiB, of a process that runs so many passes."""
    code = f"import uncertainty; uncertainty.one_process({passes})"
    folder = Path(__file__).parent
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return float(found.stdout.split()[-1])


def one_process(passes: int) -> None:
    """Run passes over pixels, and print the most memory that this process had."""
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(16, 10, 3, padding=1))
    model, x = nn.Sequential(*layers).eval(), torch.randn(8, 3, 64, 64)
    without_gradients(model, x)
    if passes:
        mc(model, passes, task="classification", class_dim=1, seed=0)(x)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(int(line.split()[1]) / 2**10)


ROWS = {"cnn": cnn, "residual": residual, "bert": transformer, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=9, help="how often each side is timed, 1 or more (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, 1 or more (default: 1)")
    arguments = parser.parse_args()
    for name in ("rounds", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    unknown = set(arguments.rows) - ROWS.keys()
    if unknown:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; known are {', '.join(ROWS)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread{'s' * (arguments.threads > 1)}\n{kernels.info()}")
    for name in arguments.rows or ROWS:
        ROWS[name](arguments.rounds)


if __name__ == "__main__":
    main()
