"""The operator's settings of the app: models, limits, and what is kept and logged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from causal_tracer.errors import SettingsError
from causal_tracer.files import cache_root

PREFIX = "CAUSAL_TRACER_"

REFERENCE_PARAMETERS = 300_000_000
"""The model size that the limits on work are for; a larger model gets less, in proportion."""

_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_BESIDE_THE_LINES = 32
_MAY_BE_ZERO = ("max_client_runs", "max_client_cell_samples", "trusted_proxies")


@dataclass(frozen=True)
class ServiceSettings:
    """Models and limits of the app. Each is read from the environment variable `CAUSAL_TRACER_` + its name in capitals.

    Attributes:
        models: The models that may be asked for, the default first: what `load_model` takes, separated by commas. A
            hub id may carry its revision, "openai-community/gpt2@607a30d", and the name of a GGUF file,
            "owner/repo:file.gguf".
        max_prompt_tokens: The longest prompt.
        max_samples: The most noise samples.
        max_cell_samples: The most restored runs of one request (cells times samples), for a model of 0.3 billion
            parameters.
        max_seconds: The longest run, once it has begun.
        max_queue: How many requests may wait for a model.
        max_client_runs: How many requests of one client may run or wait; 0 sets no limit.
        max_client_cell_samples: The most restored runs of one client in ten minutes, weighed as `max_cell_samples`; 0
            sets no limit.
        max_sessions: How many open pages the app remembers, about 0.4 MiB each; a program's request counts as one.
        trusted_proxies: How many proxies before the app report in X-Forwarded-For who asks.
        batch_size: Rows that go through the model together. A small batch gives the first cells sooner, and Stop stops
            sooner.
        device_map: "auto" spreads a model over several GPUs; empty takes one, or the CPU.
        result_bytes: Memory for finished results.
        result_disk_bytes: Disk space for finished results.
        results_folder: Where finished results are kept; empty keeps them in memory only.
        studies_folder: A study's folder, or one that holds several: they are shown after those that come with the app.
        mcp: Whether the JSON endpoints are offered to MCP clients.
        log_prompts: Whether prompts may stand in the log.
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
            raise SettingsError(f"{variable('models')} has no model. Leave it out, or give one.")
        for item in fields(self):
            least = 0 if item.name in _MAY_BE_ZERO else 1
            if item.type == "int" and getattr(self, item.name) < least:
                raise SettingsError(
                    f"{variable(item.name)}={getattr(self, item.name)} is too small. Give {least} or more."
                )

    @property
    def workers(self) -> int:
        """How many requests Gradio lets in: all that the models' queues hold, and some that need no model.

        So a known result does not wait, and who comes to a full queue gets an error.
        """
        return (self.max_queue + 1) * len(self.models) + _BESIDE_THE_LINES

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ServiceSettings:
        """Return the settings that the environment gives, with the defaults for the rest.

        Finished results are kept on disk in the cache folder, unless a variable names another one.

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
            raise SettingsError(f"{variable(name)}={text!r} is neither yes nor no. Give one of {', '.join(_WORDS)}.")
        return _WORDS[text.lower()]
    try:
        return int(text)
    except ValueError as error:
        raise SettingsError(f"{variable(name)}={text!r} is not an integer. Give one.") from error
