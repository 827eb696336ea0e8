"""A model's parts, found and checked, and running it."""
