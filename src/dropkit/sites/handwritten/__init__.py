"""Hand-written masks: random numbers, followed until something is dropped by them."""
