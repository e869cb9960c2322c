"""Trajectories: series of states of a field, of which training sees pairs of a state and the next one."""
