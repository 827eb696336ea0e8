"""Request a map from a running app, from another process or machine.

    python app.py                                                       # in one terminal
    python examples/trace_client.py http://127.0.0.1:7860 "The Space Needle is located in the city of"

Prints the progress, then the numbers and the peaks. --save writes the result to a file for `HiddenFlow.load`. Needs
gradio_client, and causal_tracer to read the result (`pip install -e .` in a clone).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gradio_client import Client
from gradio_client.exceptions import AppError

from causal_tracer import HiddenFlow


def main() -> int:
    """Inspect the prompt, trace it, and print the result."""
    parser = argparse.ArgumentParser(description="Trace a prompt on a running app.")
    parser.add_argument("address", help="the app's address, or a Space's name such as owner/space")
    parser.add_argument("prompt")
    parser.add_argument("--subject", default="", help="a part of the prompt (default: guessed)")
    parser.add_argument("--kind", default="hidden", choices=["hidden", "mlp", "attention", "head"])
    parser.add_argument("--answer", default="", help="the answer to trace (default: the model's most probable token)")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--save", type=Path, help="write the result to this JSON file")
    options = parser.parse_args()

    client = Client(options.address, verbose=False)
    inspection = client.predict(options.prompt, options.subject, answer=options.answer, api_name="/inspect_prompt")
    for problem in inspection["problems"]:
        print(f"{problem['field']}: {problem['words']}", file=sys.stderr)
    for words in inspection["warnings"]:
        print(f"warning: {words}", file=sys.stderr)
    if inspection["problems"]:
        return 1

    request = {
        "prompt": options.prompt,
        "subject": options.subject or None,
        "answer": options.answer or None,
        "samples": options.samples,
    }
    job = client.submit({"request": request, "maps": [{"kind": options.kind}]}, api_name="/trace")
    try:
        for partial in job:
            progress = partial["progress"]
            print(progress["waiting"] or f"{progress['done']} of {progress['total']} restored runs", file=sys.stderr)
        result = job.outputs()[-1]
    except AppError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        job.cancel()
        return 130

    flow = HiddenFlow.from_dict(result)
    print(f"{flow.answer!r}: {flow.high_score:.3f} clean, {flow.low_score:.3f} corrupted.")
    print(f"Total effect {flow.total_effect:.3f}. The largest indirect effects:")
    for peak in flow.peaks():
        print(f"  {peak.token!r}, layer {peak.layer}: {peak.effect:+.3f} ({peak.share:.0%} of the total effect)")
    if options.save is not None:
        flow.save(options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
