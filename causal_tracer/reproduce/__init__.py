"""Reproductions: a paper's experiment run with the paper's settings, and compared with the published numbers."""
