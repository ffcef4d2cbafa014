"""Where keys come from when none is given: PyTorch's generators, by PyTorch's rules."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dropkit.errors import ArgumentError, UnsupportedError
from dropkit.functional import dropout
from dropkit.functional.address import draw_key
from tests.helpers.statistics import FALSE_ALARM, check_count, check_independent

X = torch.ones(8, 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_manual_seed_and_saved_states_reproduce_masks() -> None:
    torch.manual_seed(1)
    first = [dropout(X) for _ in range(3)]
    state = torch.get_rng_state()
    fourth = dropout(X)
    torch.manual_seed(1)
    assert all(torch.equal(out, dropout(X)) for out in first)
    torch.set_rng_state(state)
    assert torch.equal(dropout(X), fourth)
    with torch.random.fork_rng():
        dropout(X)
    torch.set_rng_state(state)
    assert torch.equal(dropout(X), fourth)


def test_a_generator_reproduces_masks_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    first, second = generator(5), generator(5)
    runs = [[dropout(X, generator=g) for _ in range(3)] for g in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(dropout(X, generator=generator(6)), runs[0][0])


def test_zero_is_a_seed_and_a_key_like_any_other() -> None:
    assert torch.equal(dropout(X, generator=generator(0)), dropout(X, generator=generator(0)))
    torch.manual_seed(9)
    assert torch.equal(dropout(X, key=0), dropout(X, key=0))
    assert not torch.equal(dropout(X, key=0), dropout(X, key=1))


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_call_draws_one_key_whatever_the_size(size: int) -> None:
    one, other = generator(3), generator(3)
    dropout(torch.ones(size), generator=one)
    torch.randint(0, 2**62, (), generator=other)
    assert torch.equal(one.get_state(), other.get_state())


def test_explicit_addresses_masks_and_evaluation_draw_nothing() -> None:
    mask = torch.ones(8, 64, dtype=torch.bool)
    state, own = torch.get_rng_state(), generator()
    before = own.get_state()
    dropout(X, key=3)
    dropout(X, key=torch.arange(8), stream=torch.arange(8))
    dropout(X, mask=mask)
    dropout(X, 0.5, False)
    dropout(X, 0.0)
    dropout(X, 0.5, False, generator=own)
    dropout(X, 0.0, generator=own)
    dropout(X, 0.5, False, scale_at="eval", generator=own)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(own.get_state(), before)


def test_drawn_keys_use_all_bits_independently() -> None:
    """A bit stuck or biased by 0.05 in 4,000 keys would be seen."""
    own = generator(7)
    keys = torch.stack([draw_key("test", own, X) for _ in range(4000)])
    assert keys.dtype == torch.int64
    bits = (keys.unsqueeze(1) >> torch.arange(64) & 1).bool().numpy()
    for bit in range(64):
        check_count(bits[:, bit].sum(), len(keys), 0.5)
        check_independent(bits[1:, bit], bits[:-1, bit], 0.5)
        check_independent(bits[:, bit], bits[:, bit - 1], 0.5)
    assert len(keys.unique()) == len(keys), f"a repetition has probability 4e-13, far below {FALSE_ALARM}"


def test_drawn_masks_drop_at_the_rate() -> None:
    out = dropout(torch.ones(1000, 1000), 0.3)
    check_count((out != 0).sum().item(), out.numel(), 0.7)


def test_two_sources_of_noise_are_refused() -> None:
    own = generator()
    before = own.get_state()
    with pytest.raises(ArgumentError, match="`mask` must be left out where `generator` is given"):
        dropout(X, mask=X > 0, generator=own)
    for key in (0, 3, torch.tensor(0)):
        with pytest.raises(ArgumentError, match="`mask` must be left out where `key` is given"):
            dropout(X, mask=X > 0, key=key)
        with pytest.raises(ArgumentError, match="`generator` must be None where `key` is given"):
            dropout(X, key=key, generator=own)
    assert torch.equal(own.get_state(), before)


def test_a_generator_of_another_device_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`generator` must be on the input's device meta"):
        dropout(X.to("meta"), generator=generator())


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_generator_never_silently_freezes_in_compiled_code(fullgraph: bool) -> None:
    own = generator()
    compiled = torch.compile(lambda x: dropout(x, 0.5, generator=own), backend="eager", fullgraph=fullgraph)
    if fullgraph:
        with pytest.raises((UnsupportedError, torch._dynamo.exc.Unsupported), match="`generator` cannot be used in"):
            compiled(X)
    else:  # runs eagerly, outside the graph, where a generator works
        assert torch.equal(compiled(X), dropout(X, generator=generator()))
        assert not torch.equal(compiled(X), compiled(X))


def test_threads_do_not_change_a_mask() -> None:
    threads, x = torch.get_num_threads(), torch.ones(300, 1000)
    outs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outs.append(dropout(x, 0.4, key=8))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_deterministic_mode_changes_nothing() -> None:
    want = dropout(torch.ones(300, 1000), 0.1, key=8)
    try:
        torch.use_deterministic_algorithms(True)
        assert torch.equal(dropout(torch.ones(300, 1000), 0.1, key=8), want)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_every_process_draws_the_same() -> None:
    code = (
        "import torch, zlib; from dropkit.functional import dropout; torch.manual_seed(4);"
        "outs = [dropout(torch.ones(99, 77), .3), dropout(torch.ones(99, 77), .3, key=5)];"
        "print([zlib.crc32((out != 0).numpy().tobytes()) for out in outs])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment | extra, capture_output=True, text=True, check=True
        )
        for extra in ({}, {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "2"})
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.startswith("[")


def test_default_devices_and_types_change_nothing() -> None:
    want = dropout(torch.ones(6, 9), 0.4, key=8)
    with torch.device("meta"):
        assert torch.equal(dropout(torch.ones(6, 9, device="cpu"), 0.4, key=8), want)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(dropout(torch.ones(6, 9, dtype=torch.float32), 0.4, key=8), want)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_generator_is_welcome_in_a_checkpointed_evaluation(reentrant: bool) -> None:
    x = torch.ones(5, requires_grad=True)
    own = generator()
    out = checkpoint(lambda v: dropout(v * 2, 0.5, False, generator=own), x, use_reentrant=reentrant)
    out.sum().backward()
    assert torch.equal(x.grad, torch.full((5,), 2.0))


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`input` must be at most 2\*\*64 rows of 2\*\*34 columns"):
        dropout(torch.ones(1).expand(2**34 + 1), 0.5, key=1)
