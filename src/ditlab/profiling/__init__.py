"""Estimates of the memory and time of a run, and measurements of the speed of a network."""
