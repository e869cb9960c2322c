"""Clips of videos and animations: reading frames by their times, the data set, and its survey."""
