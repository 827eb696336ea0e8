"""Reproductions: a paper's experiment run as it was, and held against the numbers that the paper gives."""
