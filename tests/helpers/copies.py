"""Ways in which layers are copied."""

import io
import pickle

import torch


def pickled(layer: torch.nn.Module) -> torch.nn.Module:
    return pickle.loads(pickle.dumps(layer))  # noqa: S301  # our own bytes


def saved(layer: torch.nn.Module) -> torch.nn.Module:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)
