"""The latent cache: written once, read in place."""
