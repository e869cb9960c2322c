"""Studies: train a grid of models under one budget, score each with several seeds, and decide claims."""
