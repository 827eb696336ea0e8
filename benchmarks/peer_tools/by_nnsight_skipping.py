"""Maps by nnsight as in `by_nnsight.py`, skipping blocks whose outputs equal the corrupted run's."""

from functools import partial

from by_nnsight import Tracer
from serving import serve

if __name__ == "__main__":
    serve(partial(Tracer, skips=True))
