"""The computation of all cells of a map.

`plan` says what is to be restored in each cell; `full` runs the whole model again for every cell and sample, and is
the oracle that any faster way has to agree with.
"""
