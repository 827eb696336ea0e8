"""Tracing on ZeroGPU."""
