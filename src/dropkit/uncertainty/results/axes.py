"""Along which axis of each tensor of an output its examples lie."""

__all__ = ["NO_AXIS", "Axis"]

NO_AXIS = -1  # of a tensor that says nothing of single examples

Axis = int | None
"""An axis of examples, not negative; `NO_AXIS` of a tensor without one; None where it is not known."""
