"""How mean and covariance go through the operations of a model: one file for each kind of operation."""
