"""The latent cache: encoded once, read in place."""
