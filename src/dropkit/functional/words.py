"""Dropout of words: of single tokens, and of word types, the rows of an embedding table."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import Choice, Integer, argument_error, argument_type_error
from dropkit.functional.address import check_source, is_readable
from dropkit.functional.dropout import dropout
from dropkit.functional.examples import numbers_of
from dropkit.functional.inputs import check_flags, check_input, check_mask, is_identity, kept_by
from dropkit.functional.noise import noise_at
from dropkit.functional.overrides import overridable

__all__ = ["PER", "WORD", "check_known", "embedding_dropout", "spared_words", "word_dropout"]

PER = Choice(("sequence", "batch"))
WORD = Integer(-(2**63), 2**63 - 1, "[-2**63, 2**63)")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_WORDS = Integer(0, 2**34, "[0, 2**34]")


@overridable
def word_dropout(
    input: Tensor,
    p: float | Tensor = 0.3,
    training: bool = True,
    *,
    unknown: int | None = None,
    spared: Sequence[int] = (),
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Replace each token by an unknown word with probability `p`, or zero its whole embedding; nothing is scaled.

    Args:
        input: With `unknown`, an integer tensor of tokens, of any shape; without, their embeddings, of a floating or
            complex type, whose last axis is the features.
        p: Probability of dropping a token, in ``[0, 1]``, or a tensor as for `dropout`. Default: 0.3.
        training: Whether to drop. Default: True.
        unknown: The token to put in the place of the dropped ones; whether a table has it is not checked. Default:
            none; embeddings become zeros.
        spared: Tokens that are never dropped, such as padding; with `unknown` alone. Default: none.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept, of the shape of the tokens; of embeddings with
            length 1 on the last axis. Spared tokens stay all the same. Default: drawn.
        return_mask: Whether to return ``(output, mask)``, in which spared tokens are True; the mask is all True in
            evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape and type: the input itself in evaluation and for ``p=0``, unless a mask is given.

    Raises:
        ArgumentError: If a value is out of range, sources of noise are mixed, or a shape does not fit.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> tokens = torch.tensor([[5, 9, 2, 0], [7, 5, 0, 0]])
        >>> dropkit.functional.word_dropout(tokens, 0.5, unknown=1, spared=[0], key=7)
        tensor([[1, 9, 2, 0],
                [7, 1, 0, 0]])

    References:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz and Bengio (2016), "Generating sentences from a continuous space",
        section 3.1, for unknown words, whose k is the probability of keeping; Iyyer, Manjunatha, Boyd-Graber and
        Daume (2015), "Deep unordered composition rivals syntactic methods for text classification", section 3, for
        whole embeddings.
    """
    where = "word_dropout"
    kept_always = spared_words(where, unknown, spared)
    _check_words(where, input, unknown, kept_always, training=training, return_mask=return_mask)
    words = input if unknown is not None else input[..., :1]
    tokens = input.new_empty(()).expand(input.shape if unknown is not None else input.shape[:-1])  # by shape alone
    threshold, streams, keys = check_source(where, tokens, p, key, generator, stream)
    check_mask(where, mask, words, {"key": key, "generator": generator}, {"stream": stream})
    if is_identity(p, training, mask):
        return (input, torch.ones_like(words, dtype=torch.bool)) if return_mask else input
    if mask is None:
        keep = noise_at(where, tokens, keys, streams, generator, numbers=numbers_of(key)).keep_mask(
            words.shape, threshold
        )
    else:
        keep = kept_by(mask, threshold)
    for word in kept_always:
        keep = keep | (input == word)
    output = input.masked_fill(~keep, 0 if unknown is None else unknown)
    return (output, keep) if return_mask else output


@overridable
def embedding_dropout(
    input: Tensor,
    tokens: Tensor,
    words: int,
    p: float | Tensor = 0.1,
    training: bool = True,
    *,
    per: str = "sequence",
    batch_first: bool = True,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero the embeddings of each word type with probability `p`, all its occurrences together, and scale the others.

    It is dropout of the rows of the embedding table, done to what was looked up, so the table is neither copied nor
    changed, and its gradient is as sparse as it was.

    Args:
        input: The embeddings of the tokens, of shape (*tokens.shape, features), of a floating or complex type.
        tokens: Integer tensor of shape (sequences, ...), or (steps,) for one sequence; all from 0 to ``words - 1``.
        words: The number of word types, the rows of the table.
        p: Probability of dropping a word, in ``[0, 1]``; or a float64 tensor of no axis, or of one rate a sequence.
            Default: 0.1.
        training: Whether to drop. Default: True.
        per: Whether words are drawn anew for each ``"sequence"``, or once for the ``"batch"``. Default: ``"sequence"``.
        batch_first: Whether sequences lie along axis 0; False for axis 1, as in (steps, sequences). Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, or one a sequence. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept: of shape (sequences, words), or (words,) for the
            batch or one sequence. Default: drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape and type: the input itself in evaluation and for ``p=0``, unless a mask is given.

    Raises:
        ArgumentError: If a value is out of range, sources of noise are mixed, or a shape does not fit.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> tokens = torch.tensor([[0, 1, 2, 1], [3, 1, 3, 0]])
        >>> dropkit.functional.embedding_dropout(torch.ones(2, 4, 1), tokens, 4, 0.5, key=7).squeeze(-1)
        tensor([[0., 2., 2., 2.],
                [0., 0., 0., 2.]])

    References:
        Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks",
        section 4.2 (``per="sequence"``). Merity, Keskar and Socher (2018), "Regularizing and optimizing LSTM language
        models", section 4.3 (``per="batch"``).
    """
    where = "embedding_dropout"
    _check_dense(where, input, training=training, batch_first=batch_first, return_mask=return_mask)
    number = _WORDS.check(where, "words", words)
    _check_tokens(where, tokens, number, input)
    axis = 0 if batch_first else 1
    by_sequence = PER.check(where, "per", per) == "sequence" and tokens.dim() > 1
    # By their shape alone: sequences have keys and rates of their own, and a mask of all words each.
    sequences = input.new_empty(()).expand((tokens.size(axis),) if by_sequence else ())
    table = sequences.unsqueeze(-1).expand(*sequences.shape, number)
    threshold, streams, keys = check_source(where, sequences, p, key, generator, stream)
    check_mask(where, mask, table, {"key": key, "generator": generator}, {"stream": stream})
    if is_identity(p, training, mask):
        ones = torch.ones((), dtype=torch.bool, device=input.device)
        return (input, ones.expand(table.shape if mask is None else mask.shape)) if return_mask else input
    if mask is None:
        noise = noise_at(where, sequences, keys, streams, generator, numbers=numbers_of(key))
        mask = noise.keep_mask(table.shape, threshold)
    else:
        mask = kept_by(mask, threshold)
    if by_sequence:
        rows = tokens.movedim(axis, 0)
        keep = mask.expand(table.shape).gather(1, rows.flatten(1).long()).reshape(rows.shape)
        output = dropout(input.movedim(axis, 0), p, mask=keep.unsqueeze(-1)).movedim(0, axis)
    else:
        output = dropout(input, p, mask=mask[tokens.long()].unsqueeze(-1))
    return (output, mask) if return_mask else output


def spared_words(where: str, unknown: Any, spared: Any) -> tuple[int, ...]:
    """Return the tokens that are never dropped; raise unless they and the unknown word are integers."""
    if unknown is not None:
        WORD.check(where, "unknown", unknown)
    if isinstance(spared, str | bytes) or not isinstance(spared, Sequence):
        raise argument_type_error(where, "spared", "a sequence of tokens", spared)
    if spared and unknown is None:
        raise argument_error(where, "spared", "empty without `unknown`", spared, "Embeddings do not tell their words.")
    return tuple(WORD.check(where, f"spared[{place}]", word) for place, word in enumerate(spared))


def _check_dense(where: str, input: Any, **flags: object) -> None:
    """Raise unless embeddings are a dense tensor with an axis of features."""
    check_input(where, input, "input", **flags)
    if input.is_nested:
        remedy = "Apply it to the values of a jagged tensor, or to its parts one by one."
        raise argument_type_error(where, "input", "a dense tensor, not a nested one", input.layout, remedy)
    if input.dim() == 0:
        raise argument_error(where, "input", "of one axis or more, the last of them the features", ())


def _check_words(where: str, input: Any, unknown: int | None, spared: Sequence[int], **flags: object) -> None:
    """Raise unless the input is one of tokens, where there is an unknown word, or of embeddings."""
    if unknown is None:
        remedy = "Tokens need `unknown`."
        if isinstance(input, Tensor) and input.dtype in _INTEGERS:
            raise argument_type_error(where, "input", "of a floating or complex type", input.dtype, remedy)
        _check_dense(where, input, **flags)
        return
    if not isinstance(input, Tensor):
        raise argument_type_error(where, "input", "a torch.Tensor", input)
    if input.dtype not in _INTEGERS:
        raise argument_type_error(where, "input", "of an integer type with `unknown`", input.dtype)
    if input.layout != torch.strided or input.is_nested:
        raise argument_type_error(where, "input", "a dense tensor, not a sparse or nested one", input.layout)
    check_flags(where, **flags)
    numbers = torch.iinfo(input.dtype)
    for name, word in {"unknown": unknown, **{f"spared[{place}]": word for place, word in enumerate(spared)}}.items():
        if not numbers.min <= word <= numbers.max:
            raise argument_error(where, name, f"a number of {input.dtype}", word)


def _check_tokens(where: str, tokens: Any, words: int, input: Tensor) -> None:
    """Raise unless there is a token for every embedding, and each, where they can be read, is a word."""
    if not isinstance(tokens, Tensor):
        raise argument_type_error(where, "tokens", "a torch.Tensor", tokens)
    if tokens.dtype not in _INTEGERS:
        raise argument_type_error(where, "tokens", "of an integer type", tokens.dtype)
    if tokens.shape != input.shape[:-1]:
        raise argument_error(where, "tokens", f"of shape {tuple(input.shape[:-1])}", tuple(tokens.shape))
    if tokens.device != input.device:
        raise argument_error(where, "tokens", f"on the input's device {input.device}", tokens.device)
    check_known(where, "tokens", tokens, words)


def check_known(where: str, name: str, tokens: Tensor, words: int) -> None:
    """Raise unless tokens, where they can be read, have each a row in a table of so many words."""
    if is_readable(tokens) and not tokens.is_nested and tokens.numel():
        for token in map(int, tokens.aminmax()):
            if not 0 <= token < words:
                remedy = "Negative padding, such as -100, has no embedding: replace it first."
                raise argument_error(where, name, f"numbers in [0, {words})", token, remedy)
