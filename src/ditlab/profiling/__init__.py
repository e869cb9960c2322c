"""What a run needs, and how fast this machine is."""
