"""The setup column: prompt, subject, answer, token chips, experiment and examples; and the model's field above."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from causal_tracer.web.page import handlers
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.chips import inspection_html, stored_inspection
from causal_tracer.web.page.experiment_layout import experiment_fields, visible_fields
from causal_tracer.web.page.field_notes import NOTED_FIELDS, field_notes
from causal_tracer.web.page.fields import FIELD_NAMES, Picked
from causal_tracer.web.page.summary import message_html, model_words, status_html
from causal_tracer.web.page.texts import EXAMPLES
from causal_tracer.web.service.app_fields import APP_FIELDS
from causal_tracer.web.service.inspection import Field, Inspection
from causal_tracer.web.service.stored import STORED_PROMPT, stored_map
from causal_tracer.web.service.tracing import TraceService

LOADING_POLL_SECONDS = 1.0
# How long an open page keeps its results. Gradio drops those of a closed page after an hour.
IDLE_SECONDS = 24 * 3600
# Options of the page's own events. At each message of any event, Gradio's page copies the values of all components that
# have ever shown progress, which are an event's outputs if none are named, even if it hides the progress.
PAGE_EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": []}
AT_ONCE: dict[str, Any] = {"queue": False, **PAGE_EVENT}
# Fields may change before `chips.js` is there: it inspects them once it is.
_INSPECT_SOON = """() => {
  const page = window.causalTracer ??= {};
  page.fieldsChanged = true;
  page.inspectSoon?.();
}"""
_TELL_FOLLOWERS = "() => { document.dispatchEvent(new Event('causal-tracer-inspected')); }"


@dataclass(frozen=True, eq=False)
class Inputs:
    """The components that all tabs share.

    Attributes:
        values: The fields, in the order of `FIELD_NAMES`.
        picked: The choices made by clicking (`Picked`).
        notes: The note below each of `NOTED_FIELDS`: the problems of that field.
        message: Other problems, and warnings.
        link_message: Problems of the link that opened the page.
        model_status: The model's status.
    """

    values: list[Any]
    picked: gr.State
    notes: list[gr.HTML]
    message: gr.HTML
    link_message: gr.HTML
    model_status: gr.HTML

    def field(self, name: str) -> Any:
        """Return the component of a field."""
        return self.values[FIELD_NAMES.index(name)]


def model_field(service: TraceService) -> tuple[gr.Dropdown, gr.HTML]:
    """Lay out the list of models, and the line with the model's status."""
    statuses = service.statuses()
    model = gr.Dropdown(
        [(_model_label(status.title, status.size_words), status.model) for status in statuses],
        value=statuses[0].model,
        show_label=False,
        label=APP_FIELDS["model"].title,
        scale=0,
        min_width=330,
        elem_id="ct-model-choice",
        interactive=len(statuses) > 1,
        filterable=False,
    )
    return model, gr.HTML(status_html(model_words(statuses[0])), elem_id="ct-model", scale=1, min_width=240)


def input_fields(service: TraceService, demo: gr.Blocks, model: gr.Dropdown, line: gr.HTML) -> tuple[Inputs, Any]:
    """Lay out the fields and wire them to the chips; return them, and the event that inspects them."""
    picked = gr.State(Picked())
    first = first_inspection()
    texts: dict[str, Any] = {}
    notes = []
    texts["prompt"], note = _text_field("prompt", first)
    notes.append(note)
    texts["chat"] = _chat_field(service)
    chips = gr.HTML(inspection_html(first, enabled=False), elem_id="ct-chips", js_on_load=static_text("chips.js"))
    with gr.Row(equal_height=False):
        for name in NOTED_FIELDS[1:]:
            texts[name], note = _text_field(name, first)
            notes.append(note)
    # Separate from the message about the fields, which is replaced whenever a field changes.
    link_message = gr.HTML(message_html(), elem_id="ct-link-message")
    message = gr.HTML(message_html(), elem_id="ct-message")
    experiment, noise_level = experiment_fields()
    with gr.Column(elem_id="ct-examples"):
        gr.Examples(
            # Without a subject: it is guessed, and the subject of an earlier prompt is cleared.
            [[example.prompt, "", ""] for example in EXAMPLES],
            [texts["prompt"], texts["subject"], texts["answer"]],
            label="Examples: facts that the embedded model knows",
            example_labels=[example.label for example in EXAMPLES],
            api_visibility="private",
        )
    fields = {"model": model, **texts, **experiment}
    inputs = Inputs([fields[name] for name in FIELD_NAMES], picked, notes, message, link_message, line)
    _wire_model(service, demo, inputs, noise_level)
    chosen = [experiment[name] for name in ("corruption", "metric", "patch")]
    needed = [experiment[name] for name in ("corruption", "second_prompt", "second_subject", "foil", "mean_prompts")]
    gr.on([each.change for each in chosen], visible_fields, inputs=chosen, outputs=needed, **AT_ONCE)
    return inputs, _wire_prompt(service, inputs, chips)


_PLACEHOLDERS = {"prompt": "A sentence for the model to continue", "subject": "guessed", "answer": "the model's own"}


def _text_field(name: Field, first: Inspection) -> tuple[gr.Textbox, gr.HTML]:
    """Lay out a text field with the note below it."""
    note = field_notes(first)[NOTED_FIELDS.index(name)]
    with gr.Column(elem_classes="ct-field", min_width=140):
        box = gr.Textbox(
            STORED_PROMPT if name == "prompt" else "",
            label=APP_FIELDS[name].title,
            placeholder=_PLACEHOLDERS[name],
            lines=2 if name == "prompt" else 1,
            max_lines=6 if name == "prompt" else 1,
            elem_id=f"ct-{name}",
        )
        return box, gr.HTML(note, elem_id=f"ct-{name}-note", elem_classes="ct-field-note")


def _chat_field(service: TraceService) -> gr.Checkbox:
    return gr.Checkbox(
        APP_FIELDS["chat"].default,
        label=APP_FIELDS["chat"].title,
        visible=service.statuses()[0].chat,
        elem_id="ct-chat",
    )


def first_inspection() -> Inspection:
    """Return the inspection that the page opens with: the stored map's, with its subject shown as guessed."""
    return replace(stored_inspection(stored_map("hidden")), guessed=True)


def _model_label(title: str, size: str) -> str:
    return f"{title} · {size}" if size else title


def _wire_model(service: TraceService, demo: gr.Blocks, inputs: Inputs, noise_level: gr.HTML) -> None:
    timer = gr.Timer(LOADING_POLL_SECONDS)
    model = inputs.field("model")
    # `load` for pages opened long after the app started; `change` since links choose models too. One event for all, so
    # that an outdated answer cannot arrive last.
    gr.on(
        [timer.tick, demo.load, model.change],
        partial(handlers.model_line, service),
        inputs=[model],
        outputs=[inputs.model_status, noise_level, timer],
        trigger_mode="always_last",
        **AT_ONCE,
    )
    chat = inputs.field("chat")
    gr.on(
        [inputs.model_status.change, chat.change],
        partial(handlers.chat_box, service),
        inputs=[model, chat],
        outputs=[chat],
        trigger_mode="always_last",
        **AT_ONCE,
    )


def follower(text: str) -> gr.HTML:
    """Lay out a hint whose `input` event follows each inspection of the fields while the hint is visible."""
    return gr.HTML(f'<p class="ct-hint">{escape(text)}</p>', js_on_load=static_text("after_inspection.js"))


def _wire_prompt(service: TraceService, inputs: Inputs, chips: gr.HTML) -> Any:
    """Update chips, messages and notes when a field changes; return the event that inspects the fields."""
    prompt, subject, answer = (inputs.field(name) for name in ("prompt", "subject", "answer"))
    picked = inputs.picked
    subject.input(None, inputs=[subject], js=static_text("subject_typed.js"), api_visibility="private")
    gr.on(
        [prompt.change, subject.change],
        None,
        inputs=[prompt, subject, answer],
        outputs=[subject, answer],
        js=static_text("fields_changed.js"),
        api_visibility="private",
    )
    # The model's status too: chips need its tokenizer. `chips.js` starts one inspection for all that changes at once.
    changed = [field.change for field in (*inputs.values, picked, inputs.model_status)]
    gr.on(changed, None, js=_INSPECT_SOON, api_visibility="private")
    inspected = chips.input(
        partial(handlers.inspect_fields, service),
        inputs=[picked, *inputs.values],
        outputs=[chips, inputs.message, *inputs.notes],
        # An outdated answer must not arrive last.
        trigger_mode="always_last",
        **AT_ONCE,
    )
    inspected.then(None, js=_TELL_FOLLOWERS, api_visibility="private")
    chips.select(
        handlers.PageEvents(service).pick,
        inputs=[picked, *inputs.values],
        outputs=[subject, answer, picked, inputs.message],
        **AT_ONCE,
    )
    return inspected
