"""The app's log: one JSON object per line, without prompts unless the operator asks for them."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from causal_tracer.errors import CausalTracerError, TraceCancelled
from causal_tracer.web.service.settings import ServiceSettings

REQUESTS = "causal_tracer.web.requests"

_requests = logging.getLogger(REQUESTS)
_LONGEST_MESSAGE = 2000


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON, so that no text in it can look like a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname,
            "logger": record.name,
        }
        line |= getattr(record, "fields", None) or {"message": record.getMessage()[:_LONGEST_MESSAGE]}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def configure(settings: ServiceSettings) -> None:
    """Send the log to stderr: warnings of all modules, and each request to the app."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _requests.setLevel(logging.INFO)
    if settings.log_prompts:
        _requests.warning("", extra={"fields": {"event": "start", "note": "prompts are written to this log"}})


@contextmanager
def logged(event: str, prompt: Any, settings: ServiceSettings) -> Iterator[dict[str, object]]:
    """Log a request when it has ended, with its outcome; with its prompt only if the operator asks for prompts.

    Yields:
        The fields of the log line, to which the caller may add.
    """
    line: dict[str, object] = {"event": event, "outcome": "done"}
    begun = time.monotonic()
    try:
        yield line
    except (GeneratorExit, TraceCancelled):
        line["outcome"] = "stopped"
        raise
    except CausalTracerError as error:
        # Its message may quote the prompt.
        line |= {"outcome": "refused", "error": type(error).__name__}
        raise
    except BaseException as error:
        line |= {"outcome": "failed", "error": type(error).__name__}
        raise
    finally:
        line["total_seconds"] = round(time.monotonic() - begun, 3)
        if settings.log_prompts:
            line["prompt"] = str(prompt)[:_LONGEST_MESSAGE]
        _requests.info("", extra={"fields": line})


def prompt_in(asked: Any) -> Any:
    """Return the prompt of fields, or of a JSON object that holds a request; None if there is none."""
    request = asked.get("request", asked) if isinstance(asked, Mapping) else None
    return request.get("prompt") if isinstance(request, Mapping) else None
