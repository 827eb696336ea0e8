"""Metrics: numbers computed from a run's logits, and their descriptions."""
