"""What the operator of the app decides: which models, and how much work one request may ask for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from causal_tracer.errors import SettingsError

PREFIX = "CAUSAL_TRACER_"


@dataclass(frozen=True)
class ServiceSettings:
    """Models and limits of the app. Each is read from the environment variable `CAUSAL_TRACER_` + its name in capitals.

    Attributes:
        models: The models that may be asked for, the default first: what `load_model` takes, separated by commas.
        max_prompt_tokens: The longest prompt.
        max_samples: The most noise samples.
        max_cell_samples: The most restored runs of one request: cells of the map times noise samples.
        max_queue: How many requests may wait.
        batch_size: Rows that go through the model together. Small ones bring the first cells sooner, and Stop stops
            sooner; on two cores they take no longer in all.
    """

    models: tuple[str, ...] = ("embedded",)
    max_prompt_tokens: int = 128
    max_samples: int = 100
    max_cell_samples: int = 100_000
    max_queue: int = 32
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingsError(f"{variable('models')} names no model. Leave it out, or give one.")
        for item in fields(self):
            if item.name != "models" and getattr(self, item.name) < 1:
                raise SettingsError(f"{variable(item.name)}={getattr(self, item.name)} is too small. Give 1 or more.")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ServiceSettings:
        """The settings that the environment gives, with the defaults for the rest.

        Raises:
            SettingsError: A variable holds no whole number, or one that is too small.
        """
        given: dict[str, tuple[str, ...] | int] = {}
        for item in fields(cls):
            text = environ.get(variable(item.name), "").strip()
            if not text:
                continue
            if item.name == "models":
                given["models"] = tuple(name.strip() for name in text.split(",") if name.strip())
                continue
            try:
                given[item.name] = int(text)
            except ValueError as error:
                raise SettingsError(f"{variable(item.name)}={text!r} is no whole number. Give one.") from error
        return cls(**given)  # type: ignore[arg-type]


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()
