"""The computation of all cells of a map.

`plan` holds what is to be restored in each cell. `full` runs the whole model for every cell and sample, and is the
reference for `resumed`, which computes only what a cell can change.
"""
