r"""Call an endpoint of a running app with gradio_client: send one JSON object, and print the result as JSON.

    python app.py                                                       # in one terminal
    python examples/call.py http://127.0.0.1:7860 trace '{"request": {"prompt": "The Space Needle is in the city of"}}'
    python examples/call.py http://127.0.0.1:7860 lens '{"request": {"prompt": "The Space Needle is in the city of"}}'
    python examples/call.py http://127.0.0.1:7860 patch \
        '{"source": "Paris is the capital of", "base": "Rome is the capital of", "pairs": [[[1, 3], [1, 3]]]}'

`HiddenFlow.from_dict`, `LogitLens.from_dict` and `PatchedRun.from_dict` read the results. `trace_client.py` is a longer
example.
"""

from __future__ import annotations

import json
import sys

from gradio_client import Client
from gradio_client.exceptions import AppError


def main() -> int:
    """Call the endpoint and print its result."""
    address, endpoint, task = sys.argv[1:]
    try:
        print(json.dumps(Client(address, verbose=False).predict(json.loads(task), api_name=f"/{endpoint}")))
    except (AppError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
