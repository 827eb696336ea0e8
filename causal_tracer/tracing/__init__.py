"""From requests to results: the trace loop, the logit lens and patched runs."""
