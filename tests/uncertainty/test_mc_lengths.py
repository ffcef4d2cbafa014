"""Batches of several lengths: examples see the same networks, or a warning says that they do not."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import dropkit.nn as ours
from dropkit.uncertainty import mc

WARNED = (
    r"mc: .* drops from a tensor of shape \(.*\) in one batch and \(.*\) in another.*other networks in a batch of "
    r"another length.*padding='max_length'"
)


class Text(nn.Module):
    """A classifier of padded texts, whose outputs do not depend on padding.

    Args:
        body: Takes vectors of words and where padding is.
        last: Takes the mean of a text.
    """

    def __init__(self, body: nn.Module, last: nn.Module | None = None) -> None:
        super().__init__()
        self.words, self.body, self.last = nn.Embedding(20, 8), body, last or nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, text: Tensor) -> Tensor:
        padding = text == 0
        hidden = self.body(self.words(text), padding).masked_fill(padding[..., None], 0)
        return self.head(self.last(hidden.sum(1) / (~padding).sum(1, keepdim=True)))


class Words(nn.Module):
    """Takes words one by one, however many there are."""

    def __init__(self, layer: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        found = self.layer(words)
        return found[0] if isinstance(found, tuple) else found


class Attention(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.MultiheadAttention, heads: int = 2) -> None:
        super().__init__()
        self.attention = kind(8, heads, dropout=0.3, batch_first=True)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        return self.attention(words, words, words, key_padding_mask=padding, need_weights=False)[0]


class Products(nn.Module):
    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        heads = words.unflatten(-1, (2, 4)).transpose(1, 2)
        seen = (~padding)[:, None, None].expand(-1, -1, words.size(1), -1)
        p = 0.3 if self.training else 0.0
        return F.scaled_dot_product_attention(heads, heads, heads, seen, p).transpose(1, 2).flatten(2)


class Encoder(nn.Module):
    def __init__(self, kind: type[nn.Module], attention: float) -> None:
        super().__init__()
        self.layer = kind(8, 2, 16, 0.2, batch_first=True)
        self.layer.self_attn.dropout = attention

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        return self.layer(words, src_key_padding_mask=padding)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        packed = pack_padded_sequence(words, (~padding).sum(1), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=words.size(1))[0]


class ByHand(nn.Module):
    """A mask by hand, of each word or of all that a text has."""

    def __init__(self, is_of_texts: bool) -> None:
        super().__init__()
        self.is_of_texts = is_of_texts

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        shape = (len(words), 1, words.size(2)) if self.is_of_texts else words.shape
        return words * torch.bernoulli(torch.full(shape, 0.7)) / 0.7 if self.training else words


class Channels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout1d(0.3)

    def forward(self, words: Tensor) -> Tensor:
        return self.drop(words.transpose(1, 2)).transpose(1, 2)


# Who makes a model; and whether masks of each example, and those of all, depend on how long its batch is.
MODELS: dict[str, tuple[Callable[[], nn.Module], bool, bool]] = {
    "elements": (lambda: Text(Words(nn.Dropout(0.3))), True, False),
    "our elements": (lambda: Text(Words(ours.Dropout(0.3))), True, False),
    "Gaussian": (lambda: Text(Words(ours.GaussianDropout(0.3))), True, False),
    "by hand": (lambda: Text(ByHand(False)), True, False),
    "by hand of texts": (lambda: Text(ByHand(True)), False, False),
    "channels": (lambda: Text(Words(Channels())), False, False),
    "locked": (lambda: Text(Words(ours.LockedDropout(0.3, batch_first=True))), False, False),
    "paths": (lambda: Text(Words(ours.DropPath(0.3))), False, False),
    "last": (lambda: Text(Words(nn.Identity()), nn.Dropout(0.3)), False, False),
    "LSTM": (lambda: Text(Words(nn.LSTM(8, 8, 2, dropout=0.3, batch_first=True))), False, False),
    "our GRU": (lambda: Text(Words(ours.GRU(8, 8, 2, dropout=0.3, batch_first=True))), False, False),
    "packed": (lambda: Text(Packed()), False, False),
    "attention": (lambda: Text(Attention()), True, True),
    "attention of one head": (lambda: Text(Attention(heads=1)), True, False),
    "our attention": (lambda: Text(Attention(ours.MultiheadAttention)), True, True),
    "products": (lambda: Text(Products()), True, True),
    "encoder": (lambda: Text(Encoder(nn.TransformerEncoderLayer, 0.2)), True, True),
    "encoder without that of attention": (lambda: Text(Encoder(nn.TransformerEncoderLayer, 0.0)), True, False),
    "our encoder": (lambda: Text(Encoder(ours.TransformerEncoderLayer, 0.2)), True, True),
}


@pytest.mark.parametrize("masks", ["per_example", "shared"])
@pytest.mark.parametrize("name", MODELS)
def test_lengths_are_warned_of_where_networks_depend_on_them(name: str, masks: str) -> None:
    """Trimmed batches give what the whole gives, unless a warning says otherwise; those of one length always do."""
    torch.manual_seed(0)
    make, *depend = MODELS[name]
    model, text = make(), torch.randint(1, 20, (4, 9))
    text[1, 5:] = text[2:, 6:] = 0
    whole = mc(model, 20, seed=0, masks=masks, keep_samples=True)(text).samples
    padded = mc(model, 20, seed=0, masks=masks, keep_samples=True).batches([text[:1], text[1:]])  # never a warning
    torch.testing.assert_close(padded.samples, whole)
    trimmed = mc(model, 20, seed=0, masks=masks, keep_samples=True)
    if not depend[masks == "shared"]:
        torch.testing.assert_close(trimmed.batches([text[:2], text[2:, :6]]).samples, whole)
        return
    with pytest.warns(UserWarning, match=WARNED) as told:
        found = trimmed.batches([text[:2], text[2:, :6]]).samples
    assert len(told) == 1
    assert (found - whole).abs().max() > 0.01


def test_images_of_several_sizes_are_warned_of_where_their_rows_are_counted() -> None:
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = [torch.randn(3, 1, 8, 8), torch.randn(5, 1, 9, 9)]
    with pytest.warns(UserWarning, match=r"1 drops from .*\(3, 4, 6, 6\) in one batch and \(5, 4, 7, 7\) in another"):
        mc(convolution, 3, seed=0).batches(images)
    convolution[1] = nn.Dropout2d(0.3)
    assert mc(convolution, 3, seed=0).batches(images).mean.shape == (8, 4)


def test_lengths_are_warned_of_once_and_where_they_are_met() -> None:
    model, text = Text(Words(nn.Dropout(0.3))), torch.randint(1, 20, (6, 9))
    predict, found = mc(model, 3, seed=0), []
    results = predict.each([text[:2], text[2:4], text[4:, :6], text[:, :5]])
    for _ in range(4):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            next(results)
        found.append(len(told))
    assert found == [0, 0, 1, 0]
    predict.batches([text, text[:, :4]])
