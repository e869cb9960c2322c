"""The latent cache: images are encoded once, and training reads their latents from disk."""
