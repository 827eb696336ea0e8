"""Figures. They know no model."""
