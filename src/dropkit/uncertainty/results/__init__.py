"""Results: what many passes say, gathered while they run, in the type of the model's own output."""
