"""The settings of a study, which cannot change once the study has begun."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from causal_tracer.arguments import choice, instance
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import SettingsError, StudyError
from causal_tracer.metrics.metric import METRICS
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.record import changed_fields, from_data, one_of, record
from causal_tracer.request.records import MapSpec, RunOptions, TraceRequest
from causal_tracer.request.sites import KINDS, SITES, LayerKind, require_site

SeedRule = Literal["per fact", "one"]

FACT_FIELDS = tuple("prompt subject answer answer_id second foil read elsewhere placebo top_tokens".split())
"""Fields of `TraceRequest` that a study cannot set: they differ between facts, or a study does not store the result."""


def study_maps(
    spec: MapSpec | None = None,
    kinds: Sequence[str] = KINDS,
    window: int | None = None,
    *,
    severed: bool = True,
    placebo: bool = True,
) -> dict[str, MapSpec]:
    """Return the default maps of a study, by the names used in tables and figures.

    Args:
        spec: Fields that all maps share, such as the layers.
        kinds: The kinds; each fact gets a map of each.
        window: Number of layers patched together, for all kinds except hidden states; None takes the papers' windows.
        severed: Also make maps of hidden states with the MLP's, and with attention's, outputs held (ROME, Figure 3).
        placebo: Also make, for each restored kind, a map that restores another fact's activations.
    """
    windows = {kind: SITES[kind].window if window is None or kind == "hidden" else window for kind in SITES}
    maps: dict[str, MapSpec] = {
        kind: replace(spec or MapSpec(), kind=kind, window=windows[kind]) for kind in map(require_site, kinds)
    }
    placebos = {f"{kind}, placebo": replace(maps[kind], source="placebo") for kind in maps if not SITES[kind].blocks}
    if severed and "hidden" in maps:
        held: tuple[LayerKind, ...] = ("mlp", "attention")
        maps |= {f"hidden, {kind} severed": replace(maps["hidden"], severed=kind) for kind in held}
    return maps | placebos if placebo else maps


@record
class StudySettings:
    """The settings of a study. Two runs with different settings are different studies."""

    model: str
    """The model: an embedded model's name, a folder, a .gguf file, or a hub id."""

    facts: str
    """The source of the facts, as given to `load_facts`."""

    facts_digest: str
    """The hash of the facts (`facts_digest`)."""

    request: TraceRequest = TraceRequest("")
    """The request for each fact, without `FACT_FIELDS`. Noise "subjects" is three standard deviations of the embeddings
    of the facts' subjects, as in ROME's code."""

    maps: Mapping[str, MapSpec] = Field(default_factory=study_maps)
    """The maps of each fact, by the names used in tables and figures."""

    options: RunOptions = RunOptions()
    """The options of the run, such as batch size and engine."""

    pairs: bool = False
    """Compare each fact with another fact of its relation, in place of noise. The second prompt is the fact's prompt
    with the other fact's subject."""

    seed_rule: Annotated[SeedRule, one_of(SeedRule)] = "per fact"
    """"per fact" derives the seed of each fact's noise from seed and fact; "one" uses the same noise for all facts, as
    ROME's code does."""

    revision: str | None = None
    """The branch, tag or commit of a hub model."""

    dtype: str | None = None
    """Dtype of the weights: float32, bfloat16, float16 or auto. By default the one that `load_model` chooses."""

    controls_everywhere: bool = False
    """Make severed and placebo maps at all tokens, not only at the last subject token and the last token."""

    audit_share: float = Field(default=0.005, ge=0, le=1)
    """Share of the cells that the full sweep computes again, from 0 to 1."""

    audit_limit: float | None = Field(default=None, ge=0)
    """Largest difference from the full sweep before the study stops. By default 1e-4 for float32 weights, 0.05 for
    coarser ones."""

    def __post_init__(self) -> None:
        request = self.request
        if taken := [name for name in FACT_FIELDS[1:] if name in changed_fields(request)]:
            raise SettingsError(
                f"{taken[0]}={getattr(request, taken[0])!r} cannot be set for a study: it differs between facts, or "
                "studies do not store it. Leave it out."
            )
        choice("corruption", request.corruption, CORRUPTIONS)
        choice("metric", request.metric, METRICS)
        instance("samples", request.samples, int)
        if self.pairs and {"corruption", "noise"} & set(changed_fields(request)):
            raise SettingsError("A study over pairs has no corruption. Leave out corruption and noise, or pairs.")
        if request.metric == "logit difference" and not self.pairs:
            raise SettingsError(
                "metric='logit difference' needs a foil, and the facts of a study have no foil. "
                "Give another metric, or pairs=True."
            )
        if all(spec.source == "placebo" for spec in self.maps.values()):
            raise SettingsError("A study needs at least one map that is not a placebo.")
        for name, spec in self.maps.items():
            site = SITES[spec.kind]
            if site.rows == "heads":
                kinds = ", ".join(repr(kind) for kind, other in SITES.items() if other.rows != "heads")
                raise SettingsError(
                    f"The map {name!r} is of kind {spec.kind!r}, and a study averages over tokens. Give maps of the "
                    f"kinds {kinds}."
                )
            if spec.token is not None:
                raise SettingsError(
                    f"The map {name!r} has token={spec.token}, and the prompts of a study have different tokens. Leave "
                    "it out."
                )
            if spec.in_clean_run and request.direction == "restore":
                raise SettingsError(
                    f"The map {name!r} is made in the clean run. Give direction='corrupt' and corruption='none'."
                )
            if spec.positions is not None:
                raise SettingsError(
                    f"The map {name!r} has positions={spec.positions}, and the prompts of a study have different "
                    "tokens. Leave them out."
                )
            if spec.source == "placebo" and request.direction == "corrupt":
                raise SettingsError(
                    "A placebo is restored into the corrupted run. Leave out direction='corrupt' or the placebo maps."
                )

    @property
    def samples(self) -> int:
        """The number of noise samples of each fact: 1 for pairs and for corruptions that are not random."""
        if self.pairs:
            return 1
        named = CORRUPTIONS[cast(str, self.request.corruption)]
        return cast(int, self.request.samples) if named.is_random else 1

    def maps_of(self, prompt: Prompt) -> dict[str, MapSpec]:
        """Return the maps of a fact's prompt, with the positions of its severed and placebo maps."""
        last = tuple(sorted({prompt.subject_range[1] - 1, len(prompt) - 1}))
        return {
            name: spec if self.covers_all_tokens(name) else replace(spec, positions=last)
            for name, spec in self.maps.items()
        }

    def covers_all_tokens(self, name: str) -> bool:
        """Return whether a map covers all tokens, rather than only the last subject token and the last token."""
        spec = self.maps[name]
        return self.controls_everywhere or (spec.severed is None and spec.source != "placebo")

    def seed_of(self, fact_id: str) -> int:
        """Return the seed of a fact's noise."""
        return self.request.seed if self.seed_rule == "one" else derived_seed(self.request.seed, fact_id)

    def audit_limit_for(self, dtype: str) -> float:
        """Return the audit's limit for weights of this dtype. Rounding is far below the defaults, errors are above."""
        if self.audit_limit is not None:
            return self.audit_limit
        return 1e-4 if dtype in ("float32", "float64") else 0.05

    def changes(self, other: StudySettings) -> list[str]:
        """Return a text for each setting that differs in other settings."""
        ours, theirs = self._parts(), other._parts()
        return [
            f"{name} was {ours.get(name)!r} and is {theirs.get(name)!r}"
            for name in ours | theirs
            if ours.get(name) != theirs.get(name)
        ]

    def _parts(self) -> dict[str, Any]:
        """Return all settings and maps by name."""
        own = {name: value for name, value in vars(self).items() if name not in ("request", "maps", "options")}
        maps = {f"map {name!r}": spec for name, spec in self.maps.items()}
        return own | vars(self.request) | vars(self.options) | maps


def stored_settings(manifest: Mapping[str, Any]) -> StudySettings:
    """Return the settings stored in a manifest.

    Raises:
        StudyError: This version cannot read the settings.
    """
    try:
        return from_data(StudySettings, manifest.get("settings"))
    except SettingsError as error:
        raise StudyError(
            f"This version cannot read the settings in the study's manifest ({error}). Use the version that wrote it, "
            "or run the study again into another folder."
        ) from error


def derived_seed(seed: int, *names: str) -> int:
    """Return a seed below 2**32 derived from a seed and names by SHA-256, the same on every machine."""
    text = "\n".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
