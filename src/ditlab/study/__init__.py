"""Studies: a grid of models trained under one budget, scored with several seeds, and what that says of a claim."""
