"""What makes a network fast at inference: precision, packed layers, compiled blocks, precomputed modulation."""
