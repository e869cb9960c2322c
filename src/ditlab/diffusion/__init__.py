"""The mathematics of diffusion, with no network inside: processes, objectives, guidance."""
