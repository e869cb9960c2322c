"""Faster inference: precision, packed layers, compilation, precomputed modulation, feature caching, batch size."""
