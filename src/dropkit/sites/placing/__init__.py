"""Placing: where recipes put dropout in a model, and how it gets there."""
