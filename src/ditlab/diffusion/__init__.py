"""Diffusion independent of the network: processes, objectives, guidance and samplers."""
