"""`MapSpec`: one map of a request, with the activations restored or attention blocked, the layers and the tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from causal_tracer import arguments
from causal_tracer.arguments import as_list, flag, optional
from causal_tracer.errors import SettingsError
from causal_tracer.request.record import Check, integer, one_of, record
from causal_tracer.request.sites import SITES, LayerKind, SiteName, require_kind, require_site

Source = Literal["clean", "placebo", "zero", "mean"]
"""The source of activations: the prompt's own run, the placebo's run, zero, or the mean over prompts."""

ABLATIONS: tuple[Source, ...] = ("zero", "mean")
"""The sources of ablations: constants instead of another run's activations."""

_FLAG, _WHOLE = Check(flag), Check(optional(arguments.whole_number))


def _kind(_name: str, value: Any) -> LayerKind:
    return require_kind(value)


def _site(_name: str, value: Any) -> SiteName:
    return require_site(value)


def _tokens(name: str, value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(arguments.whole_number(name, token) for token in as_list(name, value))


def _queries(name: str, value: Any) -> int | tuple[int, ...] | None:
    if value is None or not isinstance(value, (list, tuple)):
        return arguments.optional(arguments.whole_number)(name, value)
    return _tokens(name, value)


_KINDS = "What to restore or block: {}.".format(", ".join(f'"{site.name}" ({site.patched})' for site in SITES.values()))
_WINDOWS = "Number of consecutive layers restored or blocked together; if not given, {}.".format(
    ", ".join(f"{site.window} for {site.label}" for site in SITES.values())
)


def _default_window(fields: dict[str, Any]) -> int:
    return SITES[fields["kind"]].window


@record
class MapSpec:
    """One map to compute: what is restored or blocked, in which layers and at which tokens."""

    kind: Annotated[SiteName, Check(_site)] = Field(default="hidden", description=_KINDS)

    window: Annotated[int, integer(least=1)] = Field(
        default_factory=_default_window, title="Window", description=_WINDOWS
    )

    start_layer: Annotated[int, integer()] = Field(default=0, title="First layer")
    """First layer to compute."""

    end_layer: Annotated[int | None, _WHOLE] = Field(default=None, title="One past the last layer")
    """One past the last layer to compute; if not given, up to the last block."""

    subject_tokens_only: Annotated[bool, _FLAG] = Field(default=False, title="Restore at the subject's tokens only")
    """Restore at the subject's tokens only."""

    positions: Annotated[tuple[int, ...] | None, Check(_tokens)] = None
    """Restore only these tokens, or block attention only to these tokens; if not given, all tokens."""

    token: Annotated[int | tuple[int, ...] | None, Check(_queries)] = Field(
        default=None, title="Token of heads and knockouts"
    )
    """For kind "head", the token at which heads are restored. For knockouts, the token or tokens whose attention is
    blocked. Negative numbers count from the end; if not given, the last token."""

    severed: Annotated[LayerKind | None, Check(optional(_kind))] = None
    """Keep the outputs of this kind at the restored token at their values in the corrupted run, in all layers and for
    the same noise sample (ROME, Figure 3)."""

    source: Annotated[Source, one_of(Source)] = "clean"
    """The source of the activations: "clean", the prompt's own run; "placebo", another prompt's clean run
    (`TraceRequest.placebo`); "zero", zeros; "mean", their mean over prompts (`TraceRequest.mean_over`)."""

    def __post_init__(self) -> None:
        site = SITES[self.kind]
        if site.rows == "tokens" and not site.blocks and self.token is not None:
            raise SettingsError(
                f"token={self.token} does not apply to kind={self.kind!r}, whose map has a row for each token. Leave "
                "token out, or choose tokens with positions=[...]."
            )
        if isinstance(self.token, tuple) and not (site.blocks and self.token):
            raise SettingsError(
                f"token={self.token} does not apply to kind={self.kind!r}. Give a single token; knockouts also take a "
                "list of one or more."
            )
        if site.rows != "tokens" and (self.positions is not None or self.subject_tokens_only):
            raise SettingsError(
                f"positions and subject_tokens_only do not apply to kind={self.kind!r}, whose rows are not tokens. "
                "Leave them out, and choose the token with token=..."
            )
        if site.blocks and self.source != "clean":
            raise SettingsError(
                f"source={self.source!r} does not apply to kind={self.kind!r}, which blocks attention and restores "
                "nothing. Leave it out."
            )
        if self.severed is not None and (site.blocks or self.severed in ("hidden", self.kind, site.part_of)):
            raise SettingsError(
                f"kind={self.kind!r} cannot be severed from {self.severed!r}. Give severed='mlp' or 'attention', but "
                "not the kind that the map restores."
            )

    @property
    def ablates(self) -> bool:
        """Whether activations are set to zero or to a mean."""
        return self.source in ABLATIONS

    @property
    def in_clean_run(self) -> bool:
        """Whether the map's interventions are made in the clean run: ablations and blocked attention."""
        return self.ablates or SITES[self.kind].blocks

    def at_tokens(self, n_tokens: int) -> tuple[int, ...]:
        """Return the positions of `token` in a prompt of `n_tokens`, ascending; empty for maps with a row per token.

        Raises:
            SettingsError: The prompt has no such token, or the first token's attention is to be blocked.
        """
        site = SITES[self.kind]
        if site.rows == "tokens" and not site.blocks:
            return ()
        given = -1 if self.token is None else self.token
        tokens = given if isinstance(given, tuple) else (given,)
        if outside := [token for token in tokens if not -n_tokens <= token < n_tokens]:
            raise SettingsError(
                f"token={outside[0]} is out of range: the prompt has {n_tokens} tokens. Give 0 to {n_tokens - 1}, or "
                f"-{n_tokens} to -1 to count from the end."
            )
        at = tuple(sorted({token % n_tokens for token in tokens}))
        if site.blocks and at[0] == 0:
            raise SettingsError(
                "token=0 attends to itself only, so none of its attention can be blocked. Give a later token."
            )
        return at

    def layer_range(self, n_layers: int) -> range:
        """Return the layers to compute.

        Raises:
            SettingsError: The range is empty or reaches outside the model.
        """
        end = n_layers if self.end_layer is None else self.end_layer
        if not 0 <= self.start_layer < end <= n_layers:
            raise SettingsError(
                f"start_layer={self.start_layer}, end_layer={self.end_layer} is not a range of layers of this model, "
                f"which has {n_layers} (0 to {n_layers - 1}). Choose 0 <= start_layer < end_layer <= {n_layers}."
            )
        return range(self.start_layer, end)
