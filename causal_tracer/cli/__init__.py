"""The command line `causal-tracer`: `main` and a module for each command."""
