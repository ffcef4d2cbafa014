"""Interception: seeing every call of PyTorch inside the forward of a model, and in which module it is."""
