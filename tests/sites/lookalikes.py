"""Random draws that are no dropout, and such as only perhaps are, though they look like hand-written masks."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.sites.disguises import KEEP, P


def reparameterised(x):
    return x + torch.randn_like(x) * x.exp()


def gumbel(x):
    noise = -torch.log(-torch.log(torch.rand_like(x)))
    return F.softmax(x + noise, -1) + F.gumbel_softmax(x)


def layer_drop(x):
    for _ in range(3):
        if torch.rand(()) > P:
            x = x + 1
    return x


def layer_drop_of_an_item(x):
    return x * 2 if torch.rand(1).item() < P else x


def shuffled(x):
    order = torch.argsort(torch.rand(x.shape), 1)
    return torch.gather(x, 1, order[:, :3])


def masked_tokens(x):
    ids = torch.randint(0, 9, x.shape)
    chosen = torch.bernoulli(torch.full(x.shape, 0.15)).bool()
    ids = torch.where(chosen, 9, ids)
    ids[chosen & torch.bernoulli(torch.full(x.shape, 0.5)).bool()] = 3
    return F.embedding(ids.masked_fill(chosen, 2), torch.randn(10, 4))


def mixed_up(x):
    weight = torch.rand(len(x), 1)
    return weight * x + (1 - weight) * x[torch.randperm(len(x))]


def noisy(x):
    return x + 0.1 * torch.randn_like(x) + torch.empty_like(x).uniform_(-0.1, 0.1)


def sampled(x):
    return torch.multinomial(F.softmax(x, -1), 1)


def initialised(x):
    weight = nn.init.uniform_(torch.empty(5, 5), -0.1, 0.1)
    return x @ weight.normal_(0, 0.1)


def dequantised(x):
    return (torch.floor(x * 255) + torch.rand_like(x)) / 256


def rounded(x):
    return torch.floor(x * 8 + torch.rand_like(x)) / 8


def rounded_up(x):
    low = x.floor()
    return low + (torch.rand_like(x) < x - low)


def leaky(x):
    return torch.where(x >= 0, x, x * torch.empty_like(x).uniform_(0.1, 0.3)) + F.rrelu(x, training=True)


def greedy(x):
    explores = torch.rand(len(x)) < P
    return torch.where(explores, torch.randint(0, 5, (len(x),)), x.argmax(-1))


def flipped(x):
    return x * (2 * torch.bernoulli(torch.full_like(x, 0.5)) - 1)


def salted(x):
    return x + (torch.rand_like(x) < P) * torch.randn_like(x)


def salted_by_a_spread(x):
    noise = 0.1 * torch.distributions.Normal(0.0, 1.0).sample(x.shape)
    return x + (torch.rand_like(x) < P) * (noise * x.abs())


def salted_by_a_scale(x):
    either_way = (2 * torch.rand_like(x) - 1) * x.abs()
    return x + (torch.rand_like(x) < P) * either_way


def labels(x):
    ids = torch.randint(0, 9, (len(x),))
    return x + F.embedding(torch.where(torch.rand(len(x)) < P, 9, ids), torch.randn(10, 5))


NO_DROPOUT = (
    reparameterised, gumbel, layer_drop, layer_drop_of_an_item, shuffled, masked_tokens, mixed_up, noisy, sampled,
    initialised, dequantised, rounded, rounded_up, leaky, greedy, flipped, salted,
    salted_by_a_spread, salted_by_a_scale, labels,
)  # fmt: skip


def dropped_labels(x):
    return x * (torch.rand(len(x), 1) > P)


def null_label(x):
    return torch.where(torch.rand(len(x), 1) < P, torch.zeros(1, 5), x)


def null_embedding(x):
    return torch.where(torch.rand(len(x), 1) < P, torch.randn(5), x)


def old_or_new(x):
    new = torch.tanh(x)
    return x + (new - x) * (torch.rand_like(x) > P)


def taken_away(x):
    return x - x * (torch.rand_like(x) < P)


def mask_token(x):
    mask = (torch.rand(len(x), 1) < 0.4).type_as(x)
    return x * (1 - mask) + torch.full((5,), 0.3) * mask


def cut_and_mixed(x):
    mask = torch.bernoulli(torch.full_like(x, 0.5))
    return mask * x + (1 - mask) * x.flip(0)


def pretext(x):
    mask = torch.rand_like(x) < P
    output = x.masked_fill(mask, 0.0)
    return ((output - x) ** 2 * mask).sum() / mask.sum()


def read_mask(x):
    mask = torch.rand_like(x) < P
    return x.masked_fill(mask, 0.0).sum() + x[mask].sum()


def stochastic_units(x):
    return x * torch.bernoulli(torch.sigmoid(x))


def dropped_keys(x):
    return torch.softmax(x.masked_fill(torch.rand_like(x) < P, float("-inf")), -1)


def learned_rate(x):
    return x * (torch.rand_like(x) > nn.Parameter(torch.tensor(P)))


def filled_noise(x):
    noise = torch.rand_like(x)
    drops = noise < P
    return x * noise.masked_fill_(drops, 0).masked_fill_(~drops, 1 / KEEP)


def flipped_images(x):
    return torch.where(torch.rand(len(x), 1) < 0.5, x, x.flip(1))


def padded(x):
    padding = torch.tensor([True, True, True, False, False])
    return x * ((torch.rand_like(x) > P) & padding)


def normal_sign(x):
    return x * (torch.randn_like(x) > 0)


def signs_of_halves(x):
    return x * torch.randint(0, 2, x.shape).float() * 2 - x


def signs_of_doubled_halves(x):
    return x - (torch.rand_like(x) > 0.5) * (2 * x)


def signs_of_a_doubled_mask(x):
    return x * (torch.bernoulli(torch.full_like(x, 0.5)) * 2) - x


PERHAPS = (
    dropped_labels, null_label, null_embedding, mask_token, cut_and_mixed, pretext, read_mask, stochastic_units,
    dropped_keys, old_or_new, taken_away, padded, normal_sign,
    learned_rate, flipped_images, filled_noise, signs_of_halves, signs_of_doubled_halves, signs_of_a_doubled_mask,
)  # fmt: skip
