"""Answers given as text: the tokens that say them after a prompt."""

from __future__ import annotations

from typing import Any

from causal_tracer.errors import PromptError
from causal_tracer.prompts import Prompt


def answer_ids(tokenizer: Any, prompt: Prompt, answer: str) -> tuple[int, ...]:
    """The tokens of an answer that goes on from the prompt; a space is put before it where neither side has one.

    Raises:
        PromptError: The answer is empty, or prompt and answer together are cut into other tokens than the prompt alone.
    """
    if not answer.strip():
        raise PromptError(f"The answer is empty (given: {answer!r}). Give a text, or None for the model's own answer.")
    spaced = prompt.text[-1:].isspace() or answer[:1].isspace()
    text = prompt.text + (answer if spaced else f" {answer}")
    before = prompt.input_ids
    encoded = tokenizer(text, add_special_tokens=prompt.special_tokens, verbose=False)
    ids = tuple(int(i) for i in encoded["input_ids"])
    if ids[: len(before)] == before and len(ids) > len(before):
        return ids[len(before) :]
    raise PromptError(
        f"The answer {answer!r} cannot follow the prompt {prompt.text!r}: together they are cut into other tokens than "
        "the prompt alone. End the prompt before a space, or give the answer's token id."
    )
