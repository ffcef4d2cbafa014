"""How Monte Carlo passes are run: what they have in common once, the rest for many of them at a time."""
