"""The page: components and what is wired to what. All it does is in `handlers`, all it says in `texts`."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.events import api

from causal_tracer.layers import KINDS, LayerKind
from causal_tracer.tracer import DEFAULT_WINDOWS
from causal_tracer.web import handlers
from causal_tracer.web.api import Endpoints
from causal_tracer.web.service import TraceService
from causal_tracer.web.stopping import RunButtons
from causal_tracer.web.stored import STORED_PROMPT, STORED_SUBJECT, stored_map
from causal_tracer.web.summary import details_html, message_html, model_words, numbers_html, status_html
from causal_tracer.web.texts import EXAMPLES, HOW_TO_READ, LEAD, TITLE

TAB_TITLES: dict[LayerKind, str] = {"hidden": "Hidden states", "mlp": "MLP", "attention": "Attention"}

# All that runs the model waits in one line.
MODEL_QUEUE = "model"
LOADING_POLL_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class Fields:
    """The inputs that all tabs share, and one window for each kind."""

    prompt: gr.Textbox
    subject: gr.Textbox
    message: gr.HTML
    samples: gr.Number
    noise: gr.Textbox
    seed: gr.Number
    subject_only: gr.Checkbox
    windows: dict[LayerKind, gr.Number]


def build_demo(service: TraceService) -> gr.Blocks:
    """The app of a service. Nothing is computed or loaded here: the maps shown at first are stored ones."""
    demo: gr.Blocks
    with gr.Blocks(title=f"{TITLE}: where does a language model keep a fact?", analytics_enabled=False) as demo:
        gr.HTML(f"<h1>{html.escape(TITLE)}</h1><p>{html.escape(LEAD)}</p>", elem_classes="ct-header")
        line = gr.HTML(status_html(model_words(service.status())), elem_id="ct-model")
        fields = _fields()
        _follow_model(service, demo, line)
        with gr.Tabs():
            for kind in KINDS:
                _tab(service, kind, fields)
        with gr.Accordion("How to read this", open=False):
            gr.Markdown(HOW_TO_READ, elem_classes="ct-help")
        _endpoints(service)
    demo.queue(max_size=service.settings.max_queue, default_concurrency_limit=1)
    return demo


def _fields() -> Fields:
    with gr.Row():
        prompt = gr.Textbox(
            STORED_PROMPT,
            label="Prompt",
            info="The answer is what the model says next.",
            lines=1,
            max_lines=6,
            scale=3,
            min_width=240,
            elem_id="ct-prompt",
        )
        subject = gr.Textbox(
            STORED_SUBJECT,
            label="Subject",
            info="A part of the prompt. Empty: it is guessed.",
            placeholder="guessed",
            max_lines=1,
            scale=2,
            min_width=200,
            elem_id="ct-subject",
        )
    message = gr.HTML(message_html(""), elem_id="ct-message")
    gr.Examples(
        [[example.prompt, example.subject] for example in EXAMPLES],
        [prompt, subject],
        label="Facts that the model knows",
        elem_id="ct-examples",
        example_labels=[example.label for example in EXAMPLES],
        api_visibility="private",
    )
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            samples = gr.Number(10, label="Noise samples", precision=0, min_width=140, elem_id="ct-samples")
            noise = gr.Textbox(
                "",
                label="Noise level",
                info="Empty: automatic. 0: none.",
                placeholder="automatic",
                max_lines=1,
                min_width=140,
                elem_id="ct-noise",
            )
            seed = gr.Number(1, label="Seed of the noise", precision=0, min_width=140, elem_id="ct-seed")
        with gr.Row():
            windows = {
                kind: gr.Number(
                    DEFAULT_WINDOWS[kind],
                    label=f"Window: {TAB_TITLES[kind]}",
                    info="Layers restored together.",
                    precision=0,
                    min_width=140,
                    elem_id=f"ct-window-{kind}",
                )
                for kind in KINDS
            }
        subject_only = gr.Checkbox(False, label="Restore at the subject's tokens only", elem_id="ct-subject-only")
    return Fields(prompt, subject, message, samples, noise, seed, subject_only, windows)


def _follow_model(service: TraceService, demo: gr.Blocks, line: gr.HTML) -> None:
    timer = gr.Timer(LOADING_POLL_SECONDS)
    # `load` too, for a page that is opened long after it was built.
    gr.on(
        [timer.tick, demo.load],
        partial(handlers.model_line, service),
        outputs=[line, timer],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _tab(service: TraceService, kind: LayerKind, fields: Fields) -> None:
    flow = stored_map(kind)
    with gr.Tab(TAB_TITLES[kind], id=kind):
        with gr.Row(elem_classes="ct-run", equal_height=True):
            run = gr.Button("Run", variant="primary", scale=0, min_width=120, elem_id=f"ct-run-{kind}")
            stop = gr.Button("Stop", interactive=False, scale=0, min_width=90, elem_id=f"ct-stop-{kind}")
            status = gr.HTML(
                status_html("A stored map. Run computes one for the prompt above."),
                scale=1,
                min_width=200,
                elem_id=f"ct-status-{kind}",
            )
        numbers = gr.HTML(numbers_html(flow), elem_id=f"ct-numbers-{kind}")
        figure = gr.Plot(
            handlers.app_figure(flow),
            label=f"Map: {TAB_TITLES[kind]}",
            show_label=False,
            elem_id=f"ct-map-{kind}",
            elem_classes="ct-map",
        )
        details = gr.HTML(details_html(flow, stored=True), elem_id=f"ct-details-{kind}")
    outputs = [fields.message, status, figure, numbers, details, run, stop]
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    buttons = RunButtons()
    begun = run.click(buttons.begin, outputs=outputs, **at_once)
    running = begun.then(
        partial(handlers.run_map, service, kind),
        inputs=[
            fields.prompt,
            fields.subject,
            fields.samples,
            fields.windows[kind],
            fields.noise,
            fields.seed,
            fields.subject_only,
        ],
        outputs=outputs,
        # The usual overlay would hide the map while it fills in.
        show_progress="minimal",
        show_progress_on=[status],
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=1,
        api_visibility="private",
    )
    running.failure(buttons.ended, outputs=outputs, **at_once)
    stop.click(buttons.stop, outputs=outputs, cancels=[running], **at_once)


def _endpoints(service: TraceService) -> None:
    endpoints = Endpoints(service)
    for name in ("trace_hidden", "trace_mlp", "trace_attention", "trace"):
        api(getattr(endpoints, name), api_name=name, concurrency_id=MODEL_QUEUE, concurrency_limit=1)
    api(endpoints.status, api_name="status", queue=False)
