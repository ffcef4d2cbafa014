"""Calls that draw dropout: which functions do, and the same on dropkit's own operations."""
