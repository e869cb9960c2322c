"""Data sets that come with ditlab."""
