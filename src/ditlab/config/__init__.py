"""Recipes and settings; nothing here imports torch."""
