"""The settings stored with a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from causal_tracer.arguments import whole_number
from causal_tracer.metrics.descriptions import MetricDescription


@dataclass(frozen=True)
class TraceSettings:
    """The settings of one map, as they were used.

    Attributes:
        model: Hub id, embedded name, or folder name of the model.
        revision: The model's commit or file hash, if it has one.
        dtype: Dtype of the weights.
        noise: Standard deviation of the noise on the subject's embeddings.
        noise_rule: Where the noise level came from: "given", or the rule that computed it.
        samples: Number of noise samples.
        seed: Seed of the noise.
        window: Number of consecutive layers patched together.
        batch_size: Rows of a forward pass. Results are bit-identical only at equal batch_size.
        start_layer: First layer computed.
        end_layer: One past the last layer computed.
        subject_tokens_only: Whether only the subject's tokens were patched.
        engine: The sweep that computed the cells.
        versions: Versions of the libraries used.
        corruption: How the subject was corrupted.
        metric: The metric computed from the logits.
        direction: "restore" puts clean activations into the corrupted run; "corrupt" puts corrupted ones into the
            clean run.
        severed: The kind whose outputs at the restored token were held at the corrupted run's values.
        placebo: The other prompt whose activations were restored in place of the clean ones.
        read: The position whose next token was scored; None is the last.
        foil: The token that the answer was compared with.
        elsewhere: The first of the tokens that were corrupted in place of the subject.
        metric_description: The labels and format of a custom metric; None for the built-in ones.
        token: The position at which heads were restored, or the positions whose attention was blocked; None for other
            maps.
        second: The second prompt, whose run took the place of the corrupted run.
        ablation: The constant that activations were set to: "zero", or such as "mean over 3 prompts"; None for maps
            that take activations from a run.
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
        """The positions of `token` as a tuple, empty for maps that are made at each token."""
        return self.token if isinstance(self.token, tuple) else () if self.token is None else (self.token,)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TraceSettings:
        """Return the settings stored in a saved result.

        Raises:
            KeyError, TypeError, ValueError, SettingsError: The data is not that of settings.
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
