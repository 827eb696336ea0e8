#!/bin/sh
# Ask a running app with curl: one endpoint, one JSON object. Prints the last answer, a JSON array with one result.
#
#   python app.py                                                # in one terminal
#   sh examples/call.sh http://127.0.0.1:7860 trace '{"request": {"prompt": "The Space Needle is located in the city of"}}'
#   sh examples/call.sh http://127.0.0.1:7860 lens '{"request": {"prompt": "The Space Needle is located in the city of"}}'
#   sh examples/call.sh http://127.0.0.1:7860 patch \
#     '{"source": "Paris is the capital of", "base": "Rome is the capital of", "pairs": [[[1, 3], [1, 3]]]}'
#
# The first call begins the run and gives its event; the second one streams the answers as server-sent events.
set -eu
call="${1%/}/gradio_api/call/$2"

event=$(printf '{"data": [%s]}' "$3" |
  curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' --data @- "$call") || {
  printf '%s\n' "$event" >&2
  exit 1
}
id=$(printf '%s' "$event" | sed -n 's/.*"event_id" *: *"\([^"]*\)".*/\1/p')

curl --silent --show-error --fail-with-body --no-buffer "$call/$id" | awk '
  /^event: / { kind = substr($0, 8) }
  /^data: / { if (kind != "heartbeat") { data = substr($0, 7); last = kind } }
  END { print data; exit last == "error" }'
