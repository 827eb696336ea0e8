"""Plotly figures of results. They use only the results, never a model."""
