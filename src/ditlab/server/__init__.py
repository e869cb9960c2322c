"""Models over HTTP, with a page."""
