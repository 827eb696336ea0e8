"""The upper part of the tool: model, prompt, subject, answer, chips, examples, and what stands under Advanced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from causal_tracer.layers import KINDS
from causal_tracer.tracer import DEFAULT_WINDOWS
from causal_tracer.web import handlers
from causal_tracer.web.asking import CORRUPTION_CHOICES
from causal_tracer.web.assets import static_text
from causal_tracer.web.chips import inspection_html, stored_inspection
from causal_tracer.web.explore import TAB_TITLES
from causal_tracer.web.fields import FIELD_NAMES, Picked
from causal_tracer.web.service import TraceService
from causal_tracer.web.stored import STORED_PROMPT, STORED_SUBJECT, stored_map
from causal_tracer.web.summary import message_html, model_words, status_html
from causal_tracer.web.texts import CORRUPTION_TITLES, EXAMPLES

LOADING_POLL_SECONDS = 1.0
# A page that lies open for a day still has its results; one that is closed loses them after an hour.
IDLE_SECONDS = 24 * 3600
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True, eq=False)
class Inputs:
    """What all tabs share.

    Attributes:
        values: The fields, in the order of `FIELD_NAMES`.
        picked: What was chosen by clicks.
        message: What is wrong or doubtful.
        link_message: What was wrong with the link that opened the page.
        line: How far the model is.
    """

    values: list[Any]
    picked: gr.State
    message: gr.HTML
    link_message: gr.HTML
    line: gr.HTML

    def field(self, name: str) -> Any:
        """A field by its name."""
        return self.values[FIELD_NAMES.index(name)]


def input_fields(service: TraceService, demo: gr.Blocks) -> Inputs:
    """Lay out the fields and wire them to the chips."""
    picked = gr.State(Picked())
    main, line = _main_fields(service)
    # Apart from what is said of the fields, which changes with them.
    link_message = gr.HTML(message_html(), elem_id="ct-link-message")
    message = gr.HTML(message_html(), elem_id="ct-message")
    chips = gr.HTML(
        inspection_html(stored_inspection(stored_map("hidden")), enabled=False),
        elem_id="ct-chips",
        js_on_load=static_text("chips.js"),
    )
    gr.Examples(
        [[example.prompt, example.subject] for example in EXAMPLES],
        [main["prompt"], main["subject"]],
        label="Facts that the embedded model knows",
        elem_id="ct-examples",
        example_labels=[example.label for example in EXAMPLES],
        api_visibility="private",
    )
    advanced, noise_level = _advanced_fields()
    fields = {**main, **advanced}
    inputs = Inputs([fields[name] for name in FIELD_NAMES], picked, message, link_message, line)
    _wire_model(service, demo, inputs, noise_level)
    _wire_prompt(service, inputs, chips)
    return inputs


def _main_fields(service: TraceService) -> tuple[dict[str, Any], gr.HTML]:
    statuses = service.statuses()
    with gr.Row(equal_height=False):
        model = gr.Dropdown(
            [(_model_label(status.title, status.size_words), status.model) for status in statuses],
            value=statuses[0].model,
            label="Model",
            scale=2,
            min_width=240,
            elem_id="ct-model-choice",
            interactive=len(statuses) > 1,
            filterable=False,
        )
        line = gr.HTML(status_html(model_words(statuses[0])), elem_id="ct-model", scale=3, min_width=240)
    with gr.Row(equal_height=False):
        prompt = gr.Textbox(
            STORED_PROMPT,
            label="Prompt",
            info="The answer is what the model says next.",
            lines=1,
            max_lines=6,
            scale=5,
            min_width=240,
            elem_id="ct-prompt",
        )
        subject = gr.Textbox(
            STORED_SUBJECT,
            label="Subject",
            info="A part of the prompt. Empty: guessed.",
            placeholder="guessed",
            max_lines=1,
            scale=3,
            min_width=180,
            elem_id="ct-subject",
        )
        answer = gr.Textbox(
            "",
            label="Answer",
            info="Empty: what the model says. A space at its start counts.",
            placeholder="the model's own",
            max_lines=1,
            scale=2,
            min_width=160,
            elem_id="ct-answer",
        )
    chat = gr.Checkbox(
        False,
        label="Chat message",
        info="The prompt is what the user says, the answer how the model's reply begins. For models with a chat "
        "template.",
        interactive=statuses[0].chat,
        elem_id="ct-chat",
    )
    return {"model": model, "prompt": prompt, "subject": subject, "answer": answer, "chat": chat}, line


def _model_label(title: str, size: str) -> str:
    return f"{title} · {size}" if size else title


def _advanced_fields() -> tuple[dict[str, Any], gr.HTML]:
    with gr.Accordion("Advanced", open=False, elem_id="ct-advanced"):
        with gr.Row():
            samples = gr.Number(
                10,
                label="Noise samples",
                info="Each map is their mean.",
                precision=0,
                min_width=130,
                elem_id="ct-samples",
            )
            noise = gr.Textbox(
                "",
                label="Noise level",
                info="Empty: automatic. 0: none.",
                placeholder="automatic",
                max_lines=1,
                min_width=130,
                elem_id="ct-noise",
            )
            corruption = gr.Dropdown(
                [(CORRUPTION_TITLES[name], name) for name in CORRUPTION_CHOICES],
                value="gaussian",
                label="Corruption",
                info="The first four take the level.",
                filterable=False,
                min_width=220,
                elem_id="ct-corruption",
            )
            seed = gr.Number(
                1,
                label="Seed of the noise",
                info="Same seed, same noise.",
                precision=0,
                min_width=130,
                elem_id="ct-seed",
            )
        noise_level = gr.HTML("", elem_id="ct-noise-level")
        with gr.Row():
            windows = {
                f"window_{kind}": gr.Number(
                    DEFAULT_WINDOWS[kind],
                    label=f"Window: {TAB_TITLES[kind]}",
                    info="Layers restored together.",
                    precision=0,
                    min_width=130,
                    elem_id=f"ct-window-{kind}",
                )
                for kind in KINDS
            }
        with gr.Row():
            start_layer = gr.Number(0, label="First layer", precision=0, min_width=130, elem_id="ct-start-layer")
            end_layer = gr.Textbox(
                "",
                label="One past the last layer",
                placeholder="all layers",
                max_lines=1,
                min_width=130,
                elem_id="ct-end-layer",
            )
            batch_size = gr.Textbox(
                "", label="Batch size", placeholder="the app's own", max_lines=1, min_width=130, elem_id="ct-batch-size"
            )
        subject_only = gr.Checkbox(False, label="Restore at the subject's tokens only", elem_id="ct-subject-only")
    named = {
        "samples": samples,
        "noise": noise,
        "corruption": corruption,
        "seed": seed,
        "start_layer": start_layer,
        "end_layer": end_layer,
        "batch_size": batch_size,
        "subject_tokens_only": subject_only,
    }
    return {**named, **windows}, noise_level


def _wire_model(service: TraceService, demo: gr.Blocks, inputs: Inputs, noise_level: gr.HTML) -> None:
    timer = gr.Timer(LOADING_POLL_SECONDS)
    model = inputs.field("model")
    # `load` too, for a page that is opened long after it was built; and `change`, since links choose models as well.
    # All in one event, so that no answer about an earlier model can come last.
    gr.on(
        [timer.tick, demo.load, model.change],
        partial(handlers.model_line, service),
        inputs=[model],
        outputs=[inputs.line, noise_level, timer],
        trigger_mode="always_last",
        **AT_ONCE,
    )
    chat = inputs.field("chat")
    gr.on(
        [inputs.line.change, chat.change],
        partial(handlers.chat_box, service),
        inputs=[model, chat],
        outputs=[chat],
        trigger_mode="always_last",
        **AT_ONCE,
    )


def _wire_prompt(service: TraceService, inputs: Inputs, chips: gr.HTML) -> None:
    prompt, subject, answer = (inputs.field(name) for name in ("prompt", "subject", "answer"))
    picked = inputs.picked
    prompt.change(
        None,
        inputs=[prompt, subject, answer],
        outputs=[subject, answer],
        js=static_text("prompt_changed.js"),
        api_visibility="private",
    )
    gr.on(
        # The model's line too: chips need its tokenizer, and come with it. All in one event, so that no answer to an
        # earlier question can come last.
        [field.change for field in (*inputs.values, picked, inputs.line)],
        partial(handlers.inspect_fields, service),
        inputs=[picked, *inputs.values],
        outputs=[chips, inputs.message],
        trigger_mode="always_last",
        **AT_ONCE,
    )
    chips.select(
        handlers.PageEvents(service).pick,
        inputs=[picked, *inputs.values],
        outputs=[subject, answer, picked, inputs.message],
        **AT_ONCE,
    )
