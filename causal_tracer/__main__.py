"""Run the command `causal-tracer` as `python -m causal_tracer`."""

import sys

from causal_tracer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
