"""Faster inference: precision, packed layers, compiled blocks, precomputed modulation, feature caching, batch size."""
