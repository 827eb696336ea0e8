"""How a result was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from causal_tracer.arguments import whole_number
from causal_tracer.metrics.descriptions import MetricDescription


@dataclass(frozen=True)
class TraceSettings:
    """What makes a trace reproducible.

    Attributes:
        model: Hub id, embedded name, or folder name of the model.
        revision: Its commit or file hash, where it has one.
        dtype: Dtype of its weights.
        noise: Standard deviation of the noise on the subject's embeddings.
        noise_rule: Where that number came from.
        samples: Noise samples.
        seed: Seed of the noise.
        window: Number of consecutive layers restored together.
        batch_size: Rows that went through the model together; results are bit-identical at equal batch_size only.
        start_layer: First layer computed.
        end_layer: One past the last layer computed.
        subject_tokens_only: Whether only the subject's tokens were restored.
        engine: Which sweep computed the cells.
        versions: Versions of the libraries that took part.
        corruption: What was done to the subject.
        metric: What was read off the logits.
        direction: "restore": clean activations into the corrupted run; "corrupt": corrupted ones into the clean run.
        severed: The kind whose outputs at the restored token were held at the corrupted run's values.
        placebo: The other prompt whose activations were put in place of clean ones.
        read: The position whose next token was read; None means the last.
        foil: What the answer was set against.
        elsewhere: The first of the tokens that were corrupted in the subject's place.
        metric_description: How figures present a metric of the user's; None for the built-in ones.
        token: The position at which heads were restored, or the one or several whose attention was blocked; None for
            other maps.
        second: The second prompt, which was run in place of a corrupted one.
        ablation: What activations were set to: "zero", or "mean over 3 prompts"; None for maps that set them to those
            of a run.
    """

    model: str
    revision: str | None
    dtype: str
    noise: float
    noise_rule: str
    samples: int
    seed: int
    window: int
    batch_size: int
    start_layer: int
    end_layer: int
    subject_tokens_only: bool
    engine: str
    versions: Mapping[str, str]
    corruption: str = "Gaussian noise"
    metric: str = "probability"
    direction: str = "restore"
    severed: str | None = None
    placebo: str | None = None
    read: int | None = None
    foil: str | None = None
    elsewhere: int | None = None
    metric_description: MetricDescription | None = None
    token: int | tuple[int, ...] | None = None
    second: str | None = None
    ablation: str | None = None

    @property
    def at_tokens(self) -> tuple[int, ...]:
        """The positions of `token`: none for maps made at each token."""
        return self.token if isinstance(self.token, tuple) else () if self.token is None else (self.token,)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TraceSettings:
        """Return the settings that a saved result has.

        Raises:
            KeyError, TypeError, ValueError, SettingsError: The data are something else.
        """
        described = data.get("metric_description")
        described = None if described is None else MetricDescription.from_dict(described)
        token = data.get("token")
        token = tuple(token) if isinstance(token, list) else token
        settings = cls(**{**data, "metric_description": described, "token": token})
        whole_number("window", settings.window, least=1)
        for item in fields(cls):
            value = getattr(settings, item.name)
            if not isinstance(value, _TYPES.get(str(item.type), object)):
                raise TypeError(f"settings.{item.name} is {value!r}")
        return settings


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "int | tuple[int, ...] | None": (int, tuple, type(None)),
    "Mapping[str, str]": Mapping,
}
