"""Dropout of words: of tokens or their embeddings, and of word types."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY, Integer, argument_error, argument_type_error
from dropkit.functional import embedding_dropout, word_dropout
from dropkit.functional.words import PER, check_known, spared_words
from dropkit.nn.factory import check_factory
from dropkit.nn.layer import MaskMixin, RateMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["EmbeddingDropout", "WordDropout"]

_SIZE = Integer(0, 2**31 - 1, "[0, 2**31)")


@variant(
    family="sequences",
    title="word dropout",
    noise="Bernoulli",
    shared="the features of a token",
    acts_on="activations",
    dropped="the unknown word, or zeros without scaling",
    at_one="zeros; with `unknown`, that word for every token that is not spared",
    evaluation="identity",
    formula=r"y_t = z_t\, x_t \ \text{ or }\ y_t = x_t \text{ if } z_t = 1, \text{ else unknown}, \quad "
    r"z_t \sim \mathrm{Bernoulli}(1 - p)",
    symbol="k = 1 - p, the probability of keeping (Bowman et al.)",
    use="On the tokens, or their embeddings, that a text classifier or a decoder reads.",
    rates=(0.3, 0.25),
    inputs=((2, 5, 3),),
    shown_inputs=((3, 8, 6),),
    axes=("examples", "tokens", "features"),
    function=word_dropout,
)
class WordDropout(MaskMixin):
    """Replace each token by an unknown word with probability `p`, or zero its whole embedding, in training.

    With `unknown` it takes integer tensors of tokens, without it their embeddings, whose last axis is the features;
    it refuses the other. Nothing is scaled: a sentence without a word is a sentence too.

    Args:
        p: Probability of dropping a token, in ``[0, 1]``. Default: 0.3.
        unknown: The token to put in the place of the dropped ones. Default: none; embeddings become zeros.
        spared: Tokens that are never dropped, such as padding; with `unknown` alone. Default: none.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If `p` is no number in ``[0, 1]``, or `spared` is given without `unknown`.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.WordDropout(0.5, unknown=1, spared=[0])
        >>> layer(torch.tensor([[5, 9, 2, 0], [7, 5, 0, 0]]), key=7)
        tensor([[1, 9, 2, 0],
                [7, 1, 0, 0]])
        >>> dropkit.nn.WordDropout(0.5)(torch.ones(4, 3), key=7)
        tensor([[0., 0., 0.],
                [1., 1., 1.],
                [0., 0., 0.],
                [0., 0., 0.]])

    References:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz and Bengio (2016), "Generating sentences from a continuous space",
        section 3.1, for unknown words; Iyyer, Manjunatha, Boyd-Graber and Daume (2015), "Deep unordered composition
        rivals syntactic methods for text classification", section 3, for whole embeddings.
    """

    def __init__(
        self,
        p: float = 0.3,
        *,
        unknown: int | None = None,
        spared: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        PROBABILITY.check("WordDropout", "p", p)
        words = spared_words("WordDropout", unknown, spared)
        super().__init__()
        self._set_noise(p, generator)
        self.unknown = unknown
        self.spared = words

    def _drop(self, input: Tensor, **noise: Any) -> Any:
        return word_dropout(input, self.rate, self.is_on, unknown=self.unknown, spared=self.spared, **noise)

    def extra_repr(self) -> str:
        """Show the rate and whatever differs from the defaults."""
        return self._shown(unknown=None, spared=())


@variant(
    family="sequences",
    title="embedding dropout",
    noise="Bernoulli",
    shared="all occurrences of a word in a sequence, or in the batch with per='batch'",
    acts_on="rows of the embedding table",
    dropped=0.0,
    at_one="zeros",
    evaluation="the plain table",
    formula=r"y_t = \frac{z_{w_t} E_{w_t}}{1 - p}, \quad z_w \sim \mathrm{Bernoulli}(1 - p) \text{ for each word } w",
    symbol="p_E = p, the probability of dropping",
    use="In place of the embedding table of a recurrent network or transformer of words.",
    rates=(0.1, 0.3),
    inputs=((2, 5),),
    dtype=torch.int64,
    example=lambda p: EmbeddingDropout(7, 4, p=p),
    shown=lambda p: EmbeddingDropout(12, 8, p=p),
    shown_inputs=((4, 5),),
    axes=("sequences", "words", "features"),
    is_layer=False,
    function=embedding_dropout,
)
class EmbeddingDropout(RateMixin, torch.nn.Embedding):
    """Look words up in an embedding table of which each row, a word type, is dropped with probability `p` in training.

    A drop-in replacement for `torch.nn.Embedding`, which it subclasses: same arguments in the same order, same
    `state_dict`. All occurrences of a dropped word become zeros together, and all others are scaled. Vectors are
    dropped once they are looked up, so `max_norm` bounds the rows before scaling, sparse gradients stay sparse, and
    the padding is a word like the others, whose row is zero at first and gets no gradient.

    Args:
        num_embeddings: Number of words.
        embedding_dim: Number of features.
        padding_idx: As for `torch.nn.Embedding`.
        max_norm: As for `torch.nn.Embedding`.
        norm_type: As for `torch.nn.Embedding`.
        scale_grad_by_freq: As for `torch.nn.Embedding`.
        sparse: As for `torch.nn.Embedding`.
        _weight: As for `torch.nn.Embedding`.
        _freeze: As for `torch.nn.Embedding`.
        device: As for `torch.nn.Embedding`.
        dtype: As for `torch.nn.Embedding`.
        p: Probability of dropping a word, in ``[0, 1]``. Default: 0.1.
        per: Whether words are drawn anew for each ``"sequence"``, or once for the ``"batch"``. Default: ``"sequence"``.
        batch_first: Whether sequences lie along axis 0 of the tokens; False for axis 1. Default: True.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If `p` is no number in ``[0, 1]`` or `per` is unknown.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.EmbeddingDropout(4, 1, p=0.5, _weight=torch.ones(4, 1))
        >>> layer(torch.tensor([[0, 1, 2, 1], [3, 1, 3, 0]]), key=7).squeeze(-1)
        tensor([[0., 2., 2., 2.],
                [0., 0., 0., 2.]], grad_fn=<SqueezeBackward1>)

    References:
        Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks",
        section 4.2 (``per="sequence"``). Merity, Keskar and Socher (2018), "Regularizing and optimizing LSTM language
        models", section 4.3 (``per="batch"``).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        p: float = 0.1,
        per: str = "sequence",
        batch_first: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        where = "EmbeddingDropout"
        PROBABILITY.check(where, "p", p)
        _SIZE.check(where, "num_embeddings", num_embeddings)
        _SIZE.check(where, "embedding_dim", embedding_dim)
        PER.check(where, "per", per)
        check_bool(where, "batch_first", batch_first)
        check_factory(where, device, dtype, generator)
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, _weight,
            _freeze, device, dtype,
        )  # fmt: skip
        self._set_noise(p, generator)
        self.per = per
        self.batch_first = batch_first

    def forward(
        self,
        input: Tensor,
        *,
        key: int | Tensor | None = None,
        mask: Tensor | None = None,
        return_mask: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Look tokens up.

        Args:
            input: Integer tensor of tokens, (sequences, ...), or (steps,) for one sequence.
            key: As for `dropkit.functional.embedding_dropout`. Default: drawn.
            mask: A bool tensor to use instead, True = kept, of shape (sequences, words) or (words,). Default: drawn.
            return_mask: Whether to return ``(output, mask)``. Default: False.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor of shape (*input.shape, embedding_dim); with `return_mask`, a pair.

        Raises:
            ArgumentError: As `dropkit.functional.embedding_dropout`.
            ArgumentTypeError: As `dropkit.functional.embedding_dropout`.
        """
        if not isinstance(input, Tensor):
            raise argument_type_error("EmbeddingDropout", "input", "a torch.Tensor", input)
        if input.dtype not in (torch.int64, torch.int32):
            rule = "of type torch.int64 or torch.int32"
            raise argument_type_error("EmbeddingDropout", "input", rule, input.dtype)
        if input.device != self.weight.device:
            rule = f"on the table's device {self.weight.device}"
            raise argument_error("EmbeddingDropout", "input", rule, input.device)
        words = input, self.num_embeddings, self.rate
        options: dict[str, Any] = {"per": self.per, "batch_first": self.batch_first, "return_mask": return_mask}
        options |= {"generator": self._source(key, mask), "key": key, "mask": mask, "stream": stream}
        if self.max_norm is not None:  # to look words up changes the table: what is wrong has to be found before
            vectors = self.weight.new_empty(()).expand(*input.shape, self.embedding_dim)
            embedding_dropout(vectors, *words, training=False, **options)
        try:
            vectors = super().forward(input)
        except IndexError:  # which names no token
            check_known("EmbeddingDropout", "input", input, self.num_embeddings)
            raise
        return embedding_dropout(vectors, *words, self.is_on, **options)

    def extra_repr(self) -> str:
        """Show the sizes, the rate and whatever differs from the defaults."""
        return f"{torch.nn.Embedding.extra_repr(self)}, {self._shown(per='sequence', batch_first=True)}"
