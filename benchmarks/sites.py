"""What dropout costs a training step on a CPU, and how much of that is gone once the model is accelerated.

    python benchmarks/sites.py [--quick] [NAME ...]

The models are Hugging Face's, with random weights: 4 layers, 256 wide, 4 heads, 1024 words; a step is forward, backward
and update on 8 sequences of 256 tokens, in one thread. What dropout costs is the step at p less the step at p = 0. All
sides of a row are measured in one process and take turns, by the time of the processor, so that other programs on the
machine hardly count. Names pick rows: bert, gpt2, sdpa, eager.
"""

import sys
import time
from collections.abc import Callable

import torch
from peers import transformers_library
from timing import settle_allocator

import dropkit
from dropkit import kernels
from dropkit.sites import accelerate

WORDS, BATCH, TOKENS = 1024, 8, 256
ROUNDS = 10 if "--quick" in sys.argv else 40
BAR = 0.7


def bert(p: float, attention: str) -> torch.nn.Module:
    """Return a small BERT that guesses hidden words."""
    library = transformers_library()
    config = library.BertConfig(
        vocab_size=WORDS,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=TOKENS,
        hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
        attn_implementation=attention,
    )
    return library.BertForMaskedLM(config)


def gpt2(p: float, attention: str) -> torch.nn.Module:
    """Return a small GPT-2."""
    library = transformers_library()
    config = library.GPT2Config(
        vocab_size=WORDS,
        n_positions=TOKENS,
        n_embd=256,
        n_layer=4,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=p,
        embd_pdrop=p,
        attn_pdrop=p,
        attn_implementation=attention,
    )
    return library.GPT2LMHeadModel(config)


def step(model: torch.nn.Module) -> Callable[[], None]:
    """Return a training step."""
    torch.manual_seed(0)
    words = torch.randint(WORDS, (BATCH, TOKENS))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        model(input_ids=words, labels=words).loss.backward()
        optimizer.step()

    return run


def medians(*steps: Callable[[], None]) -> list[float]:
    """Return the time of each step in milliseconds; they take turns, each time beginning with another.

    What else runs on the machine changes from round to round. So each time is taken as a share of its round, of those
    the median over all rounds, and that of the median round.
    """
    rounds = torch.zeros(ROUNDS + 1, len(steps), dtype=torch.float64)
    for number in range(len(rounds)):
        for offset in range(len(steps)):
            which = (number + offset) % len(steps)
            start = time.process_time()
            steps[which]()
            rounds[number, which] = 1e3 * (time.process_time() - start)
    rounds = rounds[1:]  # the first finds memory
    whole = rounds.sum(1, keepdim=True)
    return ((rounds / whole).median(0).values * whole.median()).tolist()


def row(make: Callable[[float, str], torch.nn.Module], attention: str) -> None:
    """Print what dropout costs a model, at two rates."""

    def built(p: float, is_accelerated: bool = False) -> Callable[[], None]:
        torch.manual_seed(0)
        model = make(p, attention)
        if is_accelerated:
            accelerate(model)
        return step(model)

    rates = (0.1, 0.5)
    without, watched, *found = medians(
        built(0.0), built(0.0, True), *(built(p, flag) for p in rates for flag in (False, True))
    )
    for number, p in enumerate(rates):
        stock, ours = found[2 * number : 2 * number + 2]
        gone = (stock - ours) / (stock - without)
        times = f"{without:9.1f} {watched:9.1f} {stock:9.1f} {ours:9.1f}"
        share, verdict = (stock - without) / stock, "met" if gone >= BAR else "MISSED"
        print(
            f"{make.__name__:5} {attention:6} {p:4} {times} {share:8.0%} {gone:8.0%}  bar >= {BAR:.0%}  {verdict}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    if transformers_library() is None:
        print("transformers is not installed, and its models are what is measured")
        return
    print(f"dropkit {dropkit.__version__}, torch {torch.__version__}, one thread")
    print(kernels.info())
    print("\nmilliseconds of a step: without dropout, that accelerated, with dropout, that accelerated;")
    print("the share of the step that dropout is, and the part of that which is gone")
    print(
        f"{'model':5} {'':6} {'p':>4} {'p = 0':>9} {'accel.':>9} {'PyTorch':>9} {'accel.':>9} {'share':>8} {'gone':>8}"
    )
    torch.set_num_threads(1)
    settle_allocator()
    names = [name for name in sys.argv[1:] if not name.startswith("-")]
    for make in (bert, gpt2):
        for attention in ("sdpa", "eager"):
            if all(name in (make.__name__, attention) for name in names):
                row(make, attention)


if __name__ == "__main__":
    main()
