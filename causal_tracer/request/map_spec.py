"""One map of a request: what is restored or blocked, in which layers and at which tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from causal_tracer import arguments
from causal_tracer.arguments import flag, optional, several
from causal_tracer.errors import SettingsError
from causal_tracer.request.record import Check, one_of, record, whole
from causal_tracer.request.sites import SITES, LayerKind, SiteName, require_kind, require_site

Source = Literal["clean", "placebo", "zero", "mean"]
"""The prompt's own run, that of the placebo, zero, or the mean over prompts."""

ABLATIONS: tuple[Source, ...] = ("zero", "mean")
"""Sources that are no run: what is set to them is taken out of the run."""

_FLAG, _WHOLE = Check(flag), Check(optional(arguments.whole_number))


def _kind(_name: str, value: Any) -> LayerKind:
    return require_kind(value)


def _site(_name: str, value: Any) -> SiteName:
    return require_site(value)


def _tokens(name: str, value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(arguments.whole_number(name, token) for token in several(name, value))


def _queries(name: str, value: Any) -> int | tuple[int, ...] | None:
    if value is None or not isinstance(value, (list, tuple)):
        return arguments.optional(arguments.whole_number)(name, value)
    return _tokens(name, value)


_WHAT = "What to restore or to block: {}.".format(
    ", ".join(f'"{site.name}" ({site.patched})' for site in SITES.values())
)
_WINDOWS = "Consecutive layers restored or blocked together; if not given, {}.".format(
    ", ".join(f"{site.window} for {site.label}" for site in SITES.values())
)


def _default_window(fields: dict[str, Any]) -> int:
    return SITES[fields["kind"]].window


@record
class MapSpec:
    """One map of a request."""

    kind: Annotated[SiteName, Check(_site)] = Field(default="hidden", description=_WHAT)

    window: Annotated[int, whole(least=1)] = Field(
        default_factory=_default_window, title="Window", description=_WINDOWS
    )

    start_layer: Annotated[int, whole()] = Field(default=0, title="First layer")
    """First layer to compute."""

    end_layer: Annotated[int | None, _WHOLE] = Field(default=None, title="One past the last layer")
    """One past the last layer to compute; if not given, up to the last block."""

    subject_tokens_only: Annotated[bool, _FLAG] = Field(default=False, title="Restore at the subject's tokens only")
    """Restore at the subject's tokens only."""

    positions: Annotated[tuple[int, ...] | None, Check(_tokens)] = None
    """Restore at these tokens only, or block attention to these only; if not given, to all."""

    token: Annotated[int | tuple[int, ...] | None, Check(_queries)] = Field(
        default=None, title="Token of heads and knockouts"
    )
    """Of kind "head": the token at which heads are restored. Of knockouts: the token, or several, that may not attend.
    A negative number counts from the end; if not given, the last."""

    severed: Annotated[LayerKind | None, Check(optional(_kind))] = None
    """Hold the outputs of this kind at the restored token at the corrupted run's values, in all layers and in the same
    noise sample (ROME, Figure 3)."""

    source: Annotated[Source, one_of(Source)] = "clean"
    """What activations are set to: those of the prompt's own run; "placebo", those of another prompt's clean run
    (`TraceRequest.placebo`); "zero"; or "mean", their mean over prompts (`TraceRequest.mean_over`)."""

    def __post_init__(self) -> None:
        site = SITES[self.kind]
        if site.rows == "tokens" and not site.blocks and self.token is not None:
            raise SettingsError(
                f"token={self.token} is for kind='head' and knockouts only, and kind={self.kind!r} is restored at each "
                "token. Leave it out, or choose tokens with positions=[...]."
            )
        if isinstance(self.token, tuple) and not (site.blocks and self.token):
            raise SettingsError(
                f"token={self.token} must be one token for kind={self.kind!r}. Several are for knockouts: give one or "
                "more there."
            )
        if site.rows != "tokens" and (self.positions is not None or self.subject_tokens_only):
            raise SettingsError(
                f"positions and subject_tokens_only choose tokens of a map of tokens (given with kind={self.kind!r}). "
                "Leave them out; the token at which such a map is made is token=..."
            )
        if site.blocks and self.source != "clean":
            raise SettingsError(
                f"source={self.source!r} is where restored activations come from, and kind={self.kind!r} blocks "
                "attention. Leave it out."
            )
        if self.severed is not None and (site.blocks or self.severed in ("hidden", self.kind, site.part_of)):
            raise SettingsError(
                f"kind={self.kind!r} cannot be severed from {self.severed!r}. Sever a map from 'mlp' or 'attention', "
                "and not from what it restores."
            )

    @property
    def ablates(self) -> bool:
        """Whether activations are set to zero or to a mean."""
        return self.source in ABLATIONS

    @property
    def in_clean_run(self) -> bool:
        """Whether the map is made in the clean run: ablations, and blocked attention."""
        return self.ablates or SITES[self.kind].blocks

    def at_tokens(self, n_tokens: int) -> tuple[int, ...]:
        """Return the positions of `token` in a prompt of `n_tokens`, ascending; none for maps made at each token.

        Raises:
            SettingsError: The prompt has no such token, or attention is to be blocked at the first one.
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
                f"start_layer={self.start_layer}, end_layer={self.end_layer} names no layers of a model that has "
                f"{n_layers}. Choose 0 <= start_layer < end_layer <= {n_layers}."
            )
        return range(self.start_layer, end)
