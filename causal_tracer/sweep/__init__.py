"""Sweeps: the computation of all cells of a map.

`plan` has the cells and their interventions. `full` runs the whole model for every cell and sample. It is the
reference for `resumed`, which computes only the tokens and blocks that a cell can change.
"""
