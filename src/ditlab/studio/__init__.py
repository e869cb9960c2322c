"""A trained model as a service: one engine for all who draw at the same time, an HTTP API, and a page."""
