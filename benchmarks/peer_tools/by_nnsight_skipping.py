"""Maps by nnsight as in `by_nnsight.py`, without the blocks that are as in the corrupted run."""

from functools import partial

from by_nnsight import Tracer
from serving import serve

if __name__ == "__main__":
    serve(partial(Tracer, skips=True))
