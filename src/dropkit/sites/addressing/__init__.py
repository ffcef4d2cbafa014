"""Addressing: keys and places of an addressed model's masks, and parts of them for examples and for workers."""
