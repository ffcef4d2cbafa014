"""Switching: what the sites of a model need so that they drop, or do not."""
