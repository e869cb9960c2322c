"""What every layer shares: errors, types, files, the device, weights, the hub."""
