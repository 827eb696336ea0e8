"""The Python lines and the command that reproduce a patched run of the app."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from causal_tracer.request.records import Text
from causal_tracer.request.sites import SiteName
from causal_tracer.results.patched import Place
from causal_tracer.web.service.python_lines import literal, loading_arguments


def patch_lines(
    source: Text,
    base: Text,
    pairs: Sequence[tuple[Place, Place]],
    site: SiteName,
    answers: Sequence[int],
    model: str,
    revision: str | None = None,
) -> str:
    """Return the lines of Python that reproduce a patched run, with texts as literals.

    Args:
        source: The prompt that the activations come from.
        base: The prompt that is run.
        pairs: Pairs of a cell of the source and a cell of the base.
        site: Which activations are patched.
        answers: Token ids of the answers whose probabilities are read.
        model: The model, as `load_model` takes it.
        revision: The hub revision to load; None for models that have only one.
    """
    chat = not (isinstance(source, str) and isinstance(base, str))
    lines = [
        "from causal_tracer import CausalTracer, plot_lens",
        *(["from causal_tracer.prompts.chat import ChatText"] if chat else []),
        "",
        f"tracer = CausalTracer.from_pretrained({loading_arguments(model, revision)})",
        "patched = tracer.patch(",
        f"    {literal(source)},",
        f"    {literal(base)},",
        f"    {list(pairs)!r},",
        f"    {site!r},",
        f"    answers={list(answers)!r},",
        ")",
        "print(patched)",
        "plot_lens(patched.lens)",
    ]
    return "\n".join(lines) + "\n"


def patch_command(
    source: Text,
    base: Text,
    pairs: Sequence[tuple[Place, Place]],
    site: SiteName,
    answers: Sequence[str],
    model: str,
    revision: str | None = None,
) -> str:
    """Return the command that reproduces a patched run; arguments as in `patch_lines`, answers as texts.

    The command takes no conversations: for these, the result is a comment.
    """
    if not (isinstance(source, str) and isinstance(base, str)):
        return "# The command takes no chat messages: use the Python lines.\n"
    given = [
        *(part for ends in pairs for part in ("--pair", ":".join(",".join(map(str, place)) for place in ends))),
        *("--kind", site),
        *(f"--answer={answer}" for answer in answers),
        *("--model", model),
        *(() if revision is None else ("--revision", revision)),
    ]
    # Options first: the prompts follow "--", since they may begin with a dash.
    return shlex.join(["causal-tracer", "patch", *given, "--", source, base]) + "\n"
