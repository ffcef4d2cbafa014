"""All subnetworks of a model: what its masks are, and what they tell together."""
