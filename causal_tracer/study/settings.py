"""The settings of a study: the part of it that must not change once it has begun."""

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
"""Fields of `TraceRequest` that are not a study's to set: they differ between facts, or no study keeps the result."""


def study_maps(
    spec: MapSpec | None = None,
    kinds: Sequence[str] = KINDS,
    window: int | None = None,
    *,
    severed: bool = True,
    placebo: bool = True,
) -> dict[str, MapSpec]:
    """Return a study's usual maps, by the names that tables and figures call them.

    Args:
        spec: What all maps share, such as their layers.
        kinds: The kinds of which each fact gets a map.
        window: Layers patched together, of all kinds but hidden states; None takes the papers'.
        severed: Also restore hidden states with the MLP's, and with attention's, outputs held (ROME, Figure 3).
        placebo: Also restore each kind that is restored to another fact's activations.
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
    """How each fact of a study is traced. Two runs that differ in any of these are different studies."""

    model: str
    """The model: an embedded name, a folder, a .gguf file, or a hub id."""

    facts: str
    """Where the facts came from."""

    facts_digest: str
    """Their hash."""

    request: TraceRequest = TraceRequest("")
    """What is asked of each fact, but for `FACT_FIELDS`. Noise "subjects" is three times the deviation of the facts'
    subjects' embeddings, as in ROME's code."""

    maps: Mapping[str, MapSpec] = Field(default_factory=study_maps)
    """The maps of each fact, by the names that tables and figures call them."""

    options: RunOptions = RunOptions()
    """How they are computed."""

    pairs: bool = False
    """In place of noise, set each fact against another of its relation: the second prompt is its own, with the other
    fact's subject."""

    seed_rule: Annotated[SeedRule, one_of(SeedRule)] = "per fact"
    """"per fact" derives each fact's noise from seed and fact; "one" gives all facts the same, as ROME's code does."""

    revision: str | None = None
    """A hub model's branch, tag or commit."""

    dtype: str | None = None
    """Dtype of the weights: float32, bfloat16, float16 or auto; if not given, `load_model`'s."""

    controls_everywhere: bool = False
    """Make severed and placebo maps at all tokens, not only at the last subject token and the last token."""

    audit_share: float = Field(default=0.005, ge=0, le=1)
    """Share of cells computed again by the full sweep."""

    audit_limit: float | None = Field(default=None, ge=0)
    """Difference at which the study stops; if not given, what the dtype allows."""

    def __post_init__(self) -> None:
        request = self.request
        if taken := [name for name in FACT_FIELDS[1:] if name in changed_fields(request)]:
            raise SettingsError(f"{taken[0]}={getattr(request, taken[0])!r} cannot be one for all facts. Leave it out.")
        choice("corruption", request.corruption, CORRUPTIONS)
        choice("metric", request.metric, METRICS)
        instance("samples", request.samples, int)
        if self.pairs and {"corruption", "noise"} & set(changed_fields(request)):
            raise SettingsError("In a study over pairs nothing is corrupted. Leave out corruption and noise, or pairs.")
        if request.metric == "logit difference" and not self.pairs:
            raise SettingsError(
                "metric='logit difference' needs a foil, and a study's facts have none. Give another, or pairs=True."
            )
        if all(spec.source == "placebo" for spec in self.maps.values()):
            raise SettingsError("A study needs at least one map that is not a placebo.")
        for name, spec in self.maps.items():
            site = SITES[spec.kind]
            if site.rows == "heads":
                kinds = ", ".join(repr(kind) for kind, other in SITES.items() if other.rows != "heads")
                raise SettingsError(
                    f"The map {name!r} is of kind {spec.kind!r}, and a study averages over tokens. Give maps of "
                    f"{kinds}."
                )
            if spec.token is not None:
                raise SettingsError(f"The map {name!r} has a token, and prompts differ in tokens. Leave it out.")
            if spec.in_clean_run and request.direction == "restore":
                raise SettingsError(
                    f"The map {name!r} is made in the clean run. Give direction='corrupt' and corruption='none'."
                )
            if spec.positions is not None:
                raise SettingsError(f"The map {name!r} has positions, and prompts differ in tokens. Leave them out.")
            if spec.source == "placebo" and request.direction == "corrupt":
                raise SettingsError(
                    "A placebo is restored into the corrupted run. Leave out direction='corrupt' or the placebo maps."
                )

    @property
    def samples(self) -> int:
        """Noise samples of each fact; 1 for a corruption without chance, and for pairs."""
        if self.pairs:
            return 1
        named = CORRUPTIONS[cast(str, self.request.corruption)]
        return cast(int, self.request.samples) if named.is_random else 1

    def maps_of(self, prompt: Prompt) -> dict[str, MapSpec]:
        """Return a fact's maps, with the tokens of its controls."""
        last = tuple(sorted({prompt.subject_range[1] - 1, len(prompt) - 1}))
        return {
            name: spec if self.everywhere(name) else replace(spec, positions=last) for name, spec in self.maps.items()
        }

    def everywhere(self, name: str) -> bool:
        """Return whether a map is made at every token, or at the last subject token and the last token only."""
        spec = self.maps[name]
        return self.controls_everywhere or (spec.severed is None and spec.source != "placebo")

    def seed_of(self, fact_id: str) -> int:
        """Return the seed of a fact's noise."""
        return self.request.seed if self.seed_rule == "one" else derived_seed(self.request.seed, fact_id)

    def limit_of(self, dtype: str) -> float:
        """Return the audit's limit for weights of this dtype: rounding is far below it, a wrong cell above."""
        if self.audit_limit is not None:
            return self.audit_limit
        return 1e-4 if dtype in ("float32", "float64") else 0.05

    def changes(self, other: StudySettings) -> list[str]:
        """Describe what differs in other settings."""
        ours, theirs = self._parts(), other._parts()
        return [
            f"{name} was {ours.get(name)!r} and is {theirs.get(name)!r}"
            for name in ours | theirs
            if ours.get(name) != theirs.get(name)
        ]

    def _parts(self) -> dict[str, Any]:
        """Return each setting by its name, and each map."""
        own = {name: value for name, value in vars(self).items() if name not in ("request", "maps", "options")}
        maps = {f"map {name!r}": spec for name, spec in self.maps.items()}
        return own | vars(self.request) | vars(self.options) | maps


def stored_settings(manifest: Mapping[str, Any]) -> StudySettings:
    """Return the settings that a manifest has.

    Raises:
        StudyError: They are not settings of this version.
    """
    try:
        return from_data(StudySettings, manifest.get("settings"))
    except SettingsError as error:
        raise StudyError(f"The manifest's settings are not those of this version ({error}).") from error


def derived_seed(seed: int, *names: str) -> int:
    """Return a seed below 2**32 that follows from a seed and names, the same on every machine."""
    text = "\n".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
