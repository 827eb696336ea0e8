"""The tab Patch: activations of the prompt in the fields, patched into a run of another prompt, cell by cell."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any, Literal

import gradio as gr

from causal_tracer.errors import CausalTracerError
from causal_tracer.request.records import Text, TraceRequest
from causal_tracer.request.sites import KINDS, SITES, LayerKind
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.explore import TAB_TITLES
from causal_tracer.web.page.fields import Picked, asked_for
from causal_tracer.web.page.history_layout import HistoryStrip
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS, Inputs
from causal_tracer.web.page.lens_grid import NO_LENS_CELL, lens_cell_html
from causal_tracer.web.page.lens_tab import (
    NOTED,
    download_row,
    failed_html,
    lens_queue,
    lens_request,
    reading_html,
    shade_switch,
    unexpected_error_html,
)
from causal_tracer.web.page.patch_card import PatchAsked, patch_card_of
from causal_tracer.web.page.patch_views import Pair, answers_html, lenses_html, pairs_html, patched_html
from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.patch_lines import patch_command, patch_lines
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import Cancelled, stepped

BASE_PROMPT = "The Eiffel Tower is located in the city of"

_ABOUT = (
    "Patch activations of the source, the prompt in the setup, into a run of the base prompt: any cell into any cell. "
    "If the patched run then gives the source's answer, these activations carry it."
)
_BEGIN = "Read both prompts, then choose pairs of cells."
_CHOOSE = "Both prompts are read. Choose pairs of cells."
_GONE = "The app no longer has these lenses. Press Read both again."
_NOTHING = ("", "", "", None, "", "", None)


@dataclass(frozen=True, eq=False)
class ReadPrompts:
    """The lenses of both prompts.

    Attributes:
        model: The model's name in requests.
        request: The source prompt with its answer.
        base_text: The base prompt.
        source: The source's lens.
        base: The base's lens; its answer is the source's.
    """

    model: str
    request: TraceRequest
    base_text: Text
    source: LogitLens
    base: LogitLens

    @property
    def texts(self) -> tuple[Text, Text]:
        """The source prompt and the base prompt."""
        return self.request.prompt, self.base_text

    @property
    def answers(self) -> dict[int, str]:
        """The answers whose probabilities are read, text by token id: the source's, and the base run's own."""
        return {
            self.source.answer_id: self.source.answer,
            **{top.token_id: top.text for top in self.base.top(-1, -1)[:1]},
        }


@dataclass(frozen=True)
class PatchEvents:
    """Events of the tab. A class, since Gradio gives its request only to methods with type hints."""

    service: TraceService

    async def read(
        self, request: gr.Request, base_prompt: str, wanted: PatchAsked | None, picked: Picked, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Read both prompts: yield status, lenses as HTML, `ReadPrompts`, the pairs, and an opened card, now used up.

        The pairs are those of the card that was opened, if it is of these prompts; else there are none.
        """
        async with aclosing(stepped(partial(self._read, request, base_prompt, wanted, picked, values))) as steps:
            async for step in steps:
                yield step

    def _read(
        self,
        request: gr.Request,
        base_prompt: str,
        wanted: PatchAsked | None,
        picked: Picked,
        values: Sequence[Any],
        left: Cancelled,
    ) -> Generator[tuple[Any, ...]]:
        try:
            asked = asked_for("hidden", picked, *values)
            model = asked["model"]
            yield reading_html(self.service, model), gr.skip(), gr.skip(), gr.skip(), gr.skip()
            client = client_of(request, self.service.settings)
            first = lens_request(asked, self.service.settings)
            source = self.service.lens(first, model, client, cancelled=left)
            # The answer of both is the source's, so that their colours can be compared.
            other = {"prompt": base_prompt, "answer": "", "answer_id": source.answer_id}
            second = lens_request({**asked, **other}, self.service.settings)
            base = self.service.lens(second, model, client, cancelled=left)
        except CausalTracerError as error:
            yield failed_html(error), "", None, (), None
            return
        read = ReadPrompts(model, first, second.prompt, source, base)
        yield status_html(_CHOOSE), lenses_html(source, base), read, (), None
        if wanted is not None and (wanted.source.prompt, wanted.base) == read.texts:
            # After the pairs were cleared, so that equal ones are a change, which runs them.
            yield gr.skip(), gr.skip(), gr.skip(), wanted.pairs, gr.skip()

    async def show_patched(
        self, request: gr.Request, read: ReadPrompts | None, pairs: tuple[Pair, ...], site: LayerKind
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Run the base with the chosen pairs.

        Yields:
            Status, lens, answers, cell, result, Python lines, command, and the run's card.
        """
        async with aclosing(stepped(partial(self._patched, request, read, pairs, site))) as steps:
            async for step in steps:
                yield step

    def _patched(
        self,
        request: gr.Request,
        read: ReadPrompts | None,
        pairs: tuple[Pair, ...],
        site: LayerKind,
        left: Cancelled,
    ) -> Generator[tuple[Any, ...]]:
        if read is None or not pairs:
            yield gr.skip() if read is None else status_html(_CHOOSE), *_NOTHING
            return
        yield reading_html(self.service, read.model, "Running"), *(gr.skip() for _ in _NOTHING)
        try:
            client = client_of(request, self.service.settings)
            answers = list(read.answers)
            run = self.service.patch(*read.texts, pairs, read.model, client, site=site, answers=answers, cancelled=left)
        except CausalTracerError as error:
            yield failed_html(error), *_NOTHING
            return
        loading = self.service.loading(read.model)
        lines = patch_lines(*read.texts, pairs, site, answers, *loading)
        command = patch_command(*read.texts, pairs, site, list(read.answers.values()), *loading)
        words = status_html(f"Done: {run.lens.run}.")
        card = patch_card_of(read.model, read.request, read.base_text, run, read.base)
        yield words, patched_html(run, read.base), answers_html(run), NO_LENS_CELL, run, lines, command, card


def patch_tab(service: TraceService, inputs: Inputs, history: HistoryStrip) -> list[Any]:
    """Lay out and wire the tab; return the components that an opened card sets: base prompt, site and pairs."""
    events = PatchEvents(service)
    with gr.Tab(TAB_TITLES["patch"], id="patch"), gr.Column(elem_classes="ct-lens-tab"):
        read, pairs, result, finished, wanted = (
            gr.State(start, time_to_live=IDLE_SECONDS) for start in (None, (), None, None, None)
        )
        gr.HTML(f'<p class="ct-hint">{escape(_ABOUT)}</p>')
        with gr.Row():
            base = gr.Textbox(
                BASE_PROMPT, label="Base prompt", lines=1, max_lines=6, scale=3, min_width=240, elem_id="ct-patch-base"
            )
            choices = [(SITES[kind].title, kind) for kind in KINDS]
            site = gr.Radio(
                choices, value="hidden", label="Activations", scale=2, min_width=240, elem_id="ct-patch-site"
            )
        with gr.Row(elem_classes="ct-run", equal_height=True):
            button = gr.Button("Read both", variant="primary", scale=0, min_width=150, elem_id="ct-run-patch")
            status = gr.HTML(status_html(_BEGIN), scale=1, min_width=200, elem_id="ct-patch-status")
        shade_switch("patch")
        lenses = gr.HTML("", elem_id="ct-patch-lenses", js_on_load=static_text("lens_grid.js"))
        listed = gr.HTML("", elem_id="ct-patch-pairs", js_on_load=static_text("pair_list.js"))
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                patched = gr.HTML("", elem_id="ct-patch-run", js_on_load=static_text("lens_grid.js"))
            with gr.Column(scale=1, min_width=230):
                answers = gr.HTML("", elem_id="ct-patch-answers")
                cell = gr.HTML("", elem_id="ct-patch-cell")
        lines, command = _sharing(result, status)
    queued = lens_queue(service)
    asked = [base, wanted, inputs.picked, *inputs.values]
    reading = button.click(events.read, inputs=asked, outputs=[status, lenses, read, pairs, wanted], **queued)
    reading.failure(unexpected_error_html, outputs=[status], **AT_ONCE)
    lenses.select(_add, inputs=[read, pairs], outputs=[pairs, status], **NOTED)
    listed.select(_remove, inputs=[pairs], outputs=[pairs], **NOTED)
    shown = {"inputs": [read, pairs], "outputs": [listed], "trigger_mode": "multiple", **AT_ONCE}
    gr.on([pairs.change, read.change], _listed, **shown)
    outputs = [status, patched, answers, cell, result, lines, command, finished]
    running = gr.on(
        [pairs.change, site.input], events.show_patched, inputs=[read, pairs, site], outputs=outputs, **queued
    )
    running.failure(unexpected_error_html, outputs=[status], **AT_ONCE)
    history.follow_patches(running, finished)
    patched.select(_cell, inputs=[read, result], outputs=[cell], **AT_ONCE)
    return [base, site, wanted]


def _sharing(result: gr.State, status: gr.HTML) -> tuple[gr.Code, gr.Code]:
    """Lay out the file to download, and the lines and the command to copy."""
    with gr.Accordion("Download, and use from Python or the command line", open=False, elem_id="ct-share-patch"):
        download_row("patch", result, status, "There is no patched run to save. Choose a pair of cells.")
        return _code("Python", "python", "python"), _code("Command line", "shell", "command")


def _code(label: str, language: Literal["python", "shell"], name: str) -> gr.Code:
    return gr.Code(
        "",
        language=language,
        interactive=False,
        wrap_lines=True,
        lines=1,
        max_lines=14,
        label=label,
        elem_id=f"ct-patch-{name}",
    )


def _add(event: gr.SelectData, read: ReadPrompts | None, pairs: tuple[Pair, ...]) -> tuple[Any, Any]:
    """Return the pairs with one more. A base cell takes one value, so its earlier pair is removed."""
    if read is None:
        return gr.skip(), status_html(_GONE, state="ct-failed")
    source_token, source_layer, base_token, base_layer = map(int, event.index)
    new = (source_token, source_layer), (base_token, base_layer)
    return (*(pair for pair in pairs if pair[1] != new[1]), new), gr.skip()


def _remove(event: gr.SelectData, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Return the pairs without one of them; -1 removes all."""
    return () if event.index == -1 else tuple(pair for place, pair in enumerate(pairs) if place != event.index)


def _listed(read: ReadPrompts | None, pairs: tuple[Pair, ...]) -> str:
    return "" if read is None else pairs_html(read.source, read.base, pairs)


def _cell(event: gr.SelectData, read: ReadPrompts | None, run: PatchedRun | None) -> str:
    """Return the chosen cell in detail, in the patched run and in the base run."""
    if read is None or run is None:
        return message_html(_GONE)
    try:
        token, layer = event.index
        return lens_cell_html(run.lens, token, layer, read.base)
    except CausalTracerError as error:
        return message_html(str(error))
