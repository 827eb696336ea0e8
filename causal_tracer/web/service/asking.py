"""What a person or a program asks for, and the checks that need no model."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.prompts.answer_forms import AnswerForm
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.records import MapSpec, TraceRequest
from causal_tracer.request.sites import KINDS, LayerKind
from causal_tracer.tracer import DEFAULT_WINDOWS
from causal_tracer.web.service.settings import ServiceSettings, limit

Asked = Literal["hidden", "mlp", "attention", "all"]
"""One kind of map, or all three of them in one sweep."""

ASKED_KINDS: tuple[str, ...] = get_args(Asked)
CORRUPTION_CHOICES: tuple[str, ...] = tuple(CORRUPTIONS)
TOP_TOKENS = 5
"""How many of the most probable next tokens a result keeps for each cell."""

# Far more than a token has characters: longer prompts are turned away before they are tokenized.
_CHARACTERS_PER_TOKEN = 50
_LONGEST_ANSWER = 200
# Beyond it, sums of squares leave float32.
_HIGHEST_NOISE = 1e15
_HIGHEST_SEED = 2**32 - 1
# Layers, windows, batches: no model has as many.
_HIGHEST_NUMBER = 2**31 - 1

_LONGEST_QUOTE = 120
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True)
class TraceInput:
    """What a person or a program asks for, as it comes in: nothing is checked yet.

    Attributes:
        prompt: The text that the model goes on from.
        subject: The part of it to corrupt; empty has it guessed.
        kind: "hidden", "mlp" or "attention", or "all" of them in one sweep.
        samples: Noise samples.
        window: Layers restored together; None takes the kind's: 1 for hidden, 10 for MLP and attention.
        noise: Standard deviation of the noise; None takes the model's automatic level, 0 adds none.
        seed: Seed of the noise.
        subject_tokens_only: Restore at the subject's tokens only.
        start_layer: First layer to compute.
        end_layer: One past the last layer to compute; None computes up to the last block.
        model: One of the app's models; empty takes the first.
        answer: The answer to trace, as text or as a token id; empty takes the model's own.
        occurrence: Which one is meant where the subject occurs more than once: "first" or "last".
        corruption: What is done to the subject: one of `CORRUPTION_CHOICES`.
        batch_size: Rows that go through the model together; None takes the app's.
        windows: Where all kinds are asked for, the window of hidden states, MLP and attention; empty, or None in a
            place, takes the kind's.
        chat: The prompt is a user's message, written by the model's chat template; the answer is the start of the
            assistant's.
        answer_form: "exact" reads the answer right after the prompt as it is written, "auto" also tries a space before
            it and reads the more probable.
    """

    prompt: str
    subject: str | None = ""
    kind: str = "hidden"
    samples: float | None = 10
    window: float | None = None
    noise: float | None = None
    seed: float | None = 1
    subject_tokens_only: bool = False
    start_layer: float | None = 0
    end_layer: float | None = None
    model: str = ""
    answer: str | float | None = ""
    occurrence: str = "last"
    corruption: str = "gaussian"
    batch_size: float | None = None
    windows: tuple[float | None, ...] = ()
    chat: bool = False
    answer_form: str = "auto"


@dataclass(frozen=True)
class CheckedInput:
    """An input whose values are what they have to be, as far as can be said without the model.

    Attributes:
        request: As the engine takes it.
        specs: The maps, by kind.
        noise: The noise level, or None for the automatic one.
    """

    request: TraceRequest
    specs: Mapping[LayerKind, MapSpec]
    noise: float | None


def check_input(asked: TraceInput, settings: ServiceSettings) -> CheckedInput:
    """The input as the engine takes it.

    Raises:
        SettingsError: A value is none of those that it can have, or over one of the app's limits.
        PromptError: Prompt, subject or answer are no texts, or too long.
    """
    prompt = _text("prompt", asked.prompt)
    if len(prompt) > _CHARACTERS_PER_TOKEN * settings.max_prompt_tokens:
        raise PromptError(
            f"The prompt has {len(prompt)} characters, and this app takes at most "
            f"{limit('max_prompt_tokens', settings.max_prompt_tokens)} tokens. Shorten it."
        )
    kinds = _kinds(asked.kind)
    samples = whole("samples", asked.samples, lowest=1)
    if samples > settings.max_samples:
        raise SettingsError(
            f"samples={samples} is over this app's limit of {limit('max_samples', settings.max_samples)}. Give fewer."
        )
    for name in ("subject_tokens_only", "chat"):
        if not isinstance(getattr(asked, name), bool):
            raise SettingsError(f"{name} is {shown(getattr(asked, name))}. Give true or false.")
    if asked.chat and not prompt.strip():
        raise PromptError("The prompt is empty. Give the user's message.")
    answer = asked.answer
    request = TraceRequest(
        text=ChatText.from_user(prompt) if asked.chat else prompt,
        subject=_text("subject", asked.subject or "").strip() or None,
        kind=kinds[0],
        samples=samples,
        seed=whole("seed", asked.seed, lowest=0, highest=_HIGHEST_SEED),
        start_layer=whole("start_layer", asked.start_layer, lowest=0),
        batch_size=_batch_size(asked.batch_size, settings),
        end_layer=None if asked.end_layer is None else whole("end_layer", asked.end_layer, lowest=1),
        subject_tokens_only=asked.subject_tokens_only,
        occurrence=cast(Occurrence, _one_of("occurrence", asked.occurrence, get_args(Occurrence))),
        answer=_answer_text(answer) if isinstance(answer, str) else None,
        answer_id=None if isinstance(answer, str | None) else whole("answer", answer, lowest=0),
        answer_form=cast(AnswerForm, _one_of("answer_form", asked.answer_form, get_args(AnswerForm))),
        corruption=_one_of("corruption", asked.corruption, CORRUPTION_CHOICES),
        top_tokens=TOP_TOKENS,
    )
    specs = {kind: MapSpec(kind, window) for kind, window in zip(kinds, _windows(asked, kinds), strict=True)}
    return CheckedInput(replace(request, window=specs[kinds[0]].window), specs, _noise(asked.noise))


def whole(name: str, value: Any, *, lowest: int, highest: int = _HIGHEST_NUMBER) -> int:
    """A whole number; forms and JSON hand on 10 as 10.0.

    Raises:
        SettingsError: It is none, or out of range.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        words = "empty" if value is None else f"{shown(value)}, which is no whole number"
        raise SettingsError(f"{name} is {words}. Give a whole number from {lowest} on.")
    if not lowest <= value <= highest:
        upper = "on" if highest == _HIGHEST_NUMBER else f"to {highest}"
        raise SettingsError(f"{name}={shown(value)} is out of range. Give a whole number from {lowest} {upper}.")
    return value


def shown(value: Any) -> str:
    """A value as messages quote it: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    try:
        text = _short.repr(value)
    except ValueError:
        # Python writes no number of more than some thousand digits.
        return f"a {type(value).__name__} with numbers too long to write"
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise PromptError("Prompt and subject have to be texts.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PromptError(f"The {name} has half a character in it (a lone surrogate). Type or paste it again.")
    return value


def _answer_text(value: str) -> str | None:
    text = _text("answer", value)
    if len(text) > _LONGEST_ANSWER:
        raise PromptError(f"The answer has {len(text)} characters. Give at most {_LONGEST_ANSWER}.")
    return text if text.strip() else None


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise SettingsError(f"{name}={shown(value)} is not known. Choose one of {', '.join(map(repr, choices))}.")
    return str(value)


def _kinds(kind: Any) -> tuple[LayerKind, ...]:
    _one_of("kind", kind, ASKED_KINDS)
    return KINDS if kind == "all" else (cast(LayerKind, kind),)


def _windows(asked: TraceInput, kinds: tuple[LayerKind, ...]) -> list[int]:
    given: tuple[float | None, ...] = (asked.window,)
    if asked.kind == "all":
        given = tuple(asked.windows or (None,) * len(kinds)) if isinstance(asked.windows, tuple | list) else ()
        if len(given) != len(kinds):
            raise SettingsError(f"windows={shown(asked.windows)} are not one for each kind. Give {len(kinds)} or none.")
    return [
        DEFAULT_WINDOWS[kind] if window is None else whole("window", window, lowest=1)
        for kind, window in zip(kinds, given, strict=True)
    ]


def _batch_size(value: Any, settings: ServiceSettings) -> int:
    if value is None:
        return settings.batch_size
    size = whole("batch_size", value, lowest=1)
    if size > settings.batch_size:
        raise SettingsError(
            f"batch_size={size} is over this app's limit of {limit('batch_size', settings.batch_size)}. Give less."
        )
    return size


def _noise(value: Any) -> float | None:
    if value is None:
        return None
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not (0 <= value <= _HIGHEST_NOISE) or math.isnan(value):
        raise SettingsError(
            f"noise={shown(value)} is not a noise level. Give 0 or a positive number, or none for automatic."
        )
    return float(value)
