"""From requests to maps: the trace loop."""
