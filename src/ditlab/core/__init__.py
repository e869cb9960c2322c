"""Code that all other packages share: errors, types, registries, files, devices, weights and the model hub."""
