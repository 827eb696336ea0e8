"""The operator's settings of the app: models, limits, storage and log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from causal_tracer.errors import SettingsError
from causal_tracer.files import cache_root

PREFIX = "CAUSAL_TRACER_"

REFERENCE_PARAMETERS = 300_000_000
"""The model size to which the limits on work apply; a larger model gets proportionally less."""

_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
# Requests let in beside those of the models' queues: for results that are known, and for error messages.
_EXTRA_REQUESTS = 32
_MAY_BE_ZERO = ("max_client_runs", "max_client_cell_samples", "trusted_proxies")


@dataclass(frozen=True)
class ServiceSettings:
    """Models and limits of the app. Each is read from the environment variable `CAUSAL_TRACER_` + its name in capitals.

    Attributes:
        models: The available models, the default first: names as `load_model` takes them, separated by commas. A hub
            id may have a revision, "openai-community/gpt2@607a30d", and the name of a GGUF file,
            "owner/repo:file.gguf".
        max_prompt_tokens: The most tokens of a prompt.
        max_samples: The most noise samples of a request.
        max_cell_samples: The most restored runs of one request (cells times samples), for a model of 0.3 billion
            parameters.
        max_seconds: The longest computation of one request, in seconds; waiting does not count.
        max_queue: The most requests that may wait for a model.
        max_client_runs: The most requests of one client that may run or wait; 0 sets no limit.
        max_client_cell_samples: The most restored runs of one client in ten minutes, weighted as in
            `max_cell_samples`; 0 sets no limit.
        max_sessions: The most open pages whose state the app keeps, about 0.4 MiB each; a program's request counts as
            one.
        trusted_proxies: Number of proxies in front of the app whose entries in X-Forwarded-For are trusted.
        batch_size: Batch rows of one forward pass. A small batch gives the first cells sooner, and Stop stops sooner.
        device_map: "auto" spreads a model over several GPUs; empty takes one GPU, or the CPU.
        result_bytes: Memory for finished results, in bytes.
        result_disk_bytes: Disk space for finished results, in bytes.
        results_folder: Where finished results are stored; empty stores them in memory only.
        studies_folder: A folder of one study or of several, shown after the studies that come with the app.
        mcp: Whether the JSON endpoints are offered to MCP clients.
        log_prompts: Whether prompts are written to the log.
    """

    models: tuple[str, ...] = ("embedded",)
    max_prompt_tokens: int = 128
    max_samples: int = 100
    max_cell_samples: int = 100_000
    max_seconds: int = 900
    max_queue: int = 32
    max_client_runs: int = 8
    max_client_cell_samples: int = 0
    max_sessions: int = 1000
    trusted_proxies: int = 0
    batch_size: int = 64
    device_map: str = ""
    result_bytes: int = 128 * 2**20
    result_disk_bytes: int = 512 * 2**20
    results_folder: str = ""
    studies_folder: str = ""
    mcp: bool = False
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingsError(f"{variable('models')} has no model. Give at least one, or leave it out.")
        for item in fields(self):
            least = 0 if item.name in _MAY_BE_ZERO else 1
            if item.type == "int" and getattr(self, item.name) < least:
                raise SettingsError(
                    f"{variable(item.name)}={getattr(self, item.name)} is too small. Give {least} or more."
                )

    @property
    def workers(self) -> int:
        """The number of requests that Gradio lets in: all that the models' queues hold, and some more.

        With these, a known result does not wait, and a request to a full queue gets an error message.
        """
        return (self.max_queue + 1) * len(self.models) + _EXTRA_REQUESTS

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ServiceSettings:
        """Return the settings that the environment gives, with the defaults for the rest.

        Finished results are stored in the cache folder, unless a variable names another folder.

        Raises:
            SettingsError: A variable is not an integer or not yes or no, or its number is too small.
        """
        given: dict[str, object] = {"results_folder": str(cache_root(environ=environ) / "results")}
        for item in fields(cls):
            text = environ.get(variable(item.name), "").strip()
            if not text:
                continue
            given[item.name] = _read(item.name, str(item.type), text)
        return cls(**given)  # type: ignore[arg-type]


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def limit(name: str, value: object) -> str:
    """Return a limit as messages give it: its value, and the setting that changes it."""
    return f"{value} ({variable(name)})"


def _read(name: str, kind: str, text: str) -> object:
    if name == "models":
        return tuple(model.strip() for model in text.split(",") if model.strip())
    if kind == "str":
        return "" if text.lower() in ("off", "none") else text
    if kind == "bool":
        if text.lower() not in _WORDS:
            raise SettingsError(
                f"{variable(name)} must be yes or no (given: {text!r}). Give one of {', '.join(_WORDS)}."
            )
        return _WORDS[text.lower()]
    try:
        return int(text)
    except ValueError as error:
        raise SettingsError(f"{variable(name)} must be an integer (given: {text!r}).") from error
