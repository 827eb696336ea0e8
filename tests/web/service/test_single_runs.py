"""Lenses and patched runs of the app: those of the tracer, within the app's limits, one after the other."""

from __future__ import annotations

import json
import logging
import re
import threading
from dataclasses import replace

import pytest

from causal_tracer import CausalTracer
from causal_tracer.errors import (
    BusyError,
    CausalTracerError,
    ModelLoadError,
    PromptError,
    SettingsError,
    TraceCancelled,
)
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.web.service import logs
from causal_tracer.web.service.single_runs import LENS_WORK, MOST_PAIRS, MOST_TOP_TOKENS
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer
from tests.support.web_tiny import ASKED, NOISE, load_tiny_chat, tiny_service

REQUEST = TraceRequest(PROMPT, SUBJECT, samples=2)
OTHER = PROMPT.replace(SUBJECT, "Eiffel Tower")
PAIRS = [((1, 1), (2, 1)), ((-1, 0), (-1, 2))]


@pytest.fixture(scope="module")
def service():
    return tiny_service(max_prompt_tokens=40)


@pytest.fixture(scope="module")
def tracer() -> CausalTracer:
    return CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), noise=NOISE, model_id="tiny", revision="r1")


class TestLens:
    @pytest.mark.parametrize(
        "given",
        [
            {"top": 3},
            {"top": 3, "corrupted": True},
            {"top": 3, "restored": (2, 1), "spec": MapSpec("mlp"), "options": RunOptions(batch_size=2)},
        ],
        ids=["clean", "corrupted", "restored"],
    )
    def test_is_the_tracer_s(self, service, tracer, given):
        assert service.lens(REQUEST, "tiny", **given).to_dict() == tracer.lens(REQUEST, **given).to_dict()

    def test_of_a_conversation(self):
        chat = ChatText.from_user(f"Where is the {SUBJECT}?")
        lens = tiny_service(load_tiny_chat).lens(TraceRequest(chat))
        assert lens.prompt.endswith("[assistant]\n")

    def test_whoever_waits_may_leave_the_queue(self):
        service = tiny_service()
        service.lens(TraceRequest(OTHER))
        queue = service._slot("tiny").queue
        ticket = queue.join()
        with pytest.raises(TraceCancelled, match="while it waited"):
            service.lens(REQUEST, cancelled=lambda: True)
        with pytest.raises(TraceCancelled, match="while it waited"):
            service.patch(PROMPT, OTHER, PAIRS, cancelled=lambda: True)
        queue.leave(ticket)
        assert len(queue) == 0
        with pytest.raises(TraceCancelled, match="The lens was cancelled"):
            service.lens(REQUEST, cancelled=lambda: True)
        assert len(queue) == 0

    def test_no_text_may_be_too_long(self):
        service = tiny_service(max_prompt_tokens=15)
        words = r"The {} has \d+ tokens.*15 \(CAUSAL_TRACER_MAX_PROMPT_TOKENS\)"
        with pytest.raises(PromptError, match=words.format("prompt")):
            service.lens(TraceRequest(OTHER))
        with pytest.raises(PromptError, match=words.format("second prompt")):
            service.lens(TraceRequest(PROMPT, second=OtherPrompt(OTHER)), corrupted=True)

    def test_top_is_limited(self, service):
        with pytest.raises(SettingsError, match=f"over this app's limit of {MOST_TOP_TOKENS}"):
            service.lens(REQUEST, top=MOST_TOP_TOKENS + 1)

    def test_a_wrong_request_is_refused_and_the_model_is_free_again(self, service):
        with pytest.raises(CausalTracerError, match="is not in the prompt"):
            service.lens(TraceRequest(PROMPT, "Rome"), corrupted=True)
        assert service.health()["running"] == 0


class TestPatch:
    def test_is_the_tracer_s(self, service, tracer):
        given = {"site": "mlp", "answers": [" Rome", 3], "top": 2}
        run = service.patch(PROMPT, OTHER, PAIRS, "tiny", **given)
        assert run.to_dict() == tracer.patch(PROMPT, OTHER, PAIRS, **given).to_dict()

    @pytest.mark.parametrize(("source", "base"), [(PROMPT, OTHER), (OTHER, PROMPT)])
    def test_neither_prompt_may_be_too_long(self, source, base):
        with pytest.raises(PromptError, match=r"15 \(CAUSAL_TRACER_MAX_PROMPT_TOKENS\)"):
            tiny_service(max_prompt_tokens=15).patch(source, base, PAIRS)

    def test_pairs_are_limited(self, service):
        with pytest.raises(SettingsError, match=f"{MOST_PAIRS + 1} pairs were given"):
            service.patch(PROMPT, OTHER, PAIRS[:1] * (MOST_PAIRS + 1))

    def test_a_pair_that_does_not_fit_is_named(self, service):
        with pytest.raises(SettingsError, match=re.escape("base layer 9 is out of range")):
            service.patch(PROMPT, OTHER, [((1, 1), (1, 9))])


class TestTurns:
    def test_a_lens_waits_for_the_run_before_it(self):
        service = tiny_service()
        run = service.trace({**ASKED, "samples": 9})
        while next(run).done == 0:
            pass
        found = []
        asking = threading.Thread(target=lambda: found.append(service.lens(REQUEST)))
        asking.start()
        while service.health()["waiting"] == 0:
            pass
        assert not found
        run.close()
        asking.join(timeout=60)
        assert len(found) == 1

    def test_a_client_s_share_is_used_up(self):
        service = tiny_service(max_client_cell_samples=LENS_WORK * 3)
        service.lens(REQUEST, client="a")
        service.lens(REQUEST, client="a", corrupted=True)
        other = TraceRequest(OTHER)
        for ask in (lambda: service.lens(other, client="a"), lambda: service.patch(PROMPT, OTHER, PAIRS, client="a")):
            with pytest.raises(BusyError, match="CAUSAL_TRACER_MAX_CLIENT_CELL_SAMPLES"):
                ask()
        service.patch(PROMPT, OTHER, PAIRS, client="b")
        # What is known already costs nothing.
        for again in (
            lambda: service.lens(REQUEST, client="a"),
            lambda: service.patch(PROMPT, OTHER, PAIRS, client="a"),
        ):
            assert again() is again()

    def test_what_is_known_waits_for_no_run(self):
        service = tiny_service()
        known = service.lens(REQUEST), service.patch(PROMPT, OTHER, PAIRS)
        ticket = service._slot("tiny").queue.join()
        # Whoever had to wait would leave at once.
        impatient = {"cancelled": lambda: True}
        again = service.lens(REQUEST, **impatient), service.patch(PROMPT, OTHER, PAIRS, **impatient)
        service._slot("tiny").queue.leave(ticket)
        assert again == known

    def test_another_request_is_another_result(self):
        service = tiny_service()
        lenses = [
            service.lens(REQUEST),
            service.lens(REQUEST, top=3),
            service.lens(replace(REQUEST, answer=" Rome")),
            service.lens(TraceRequest(OTHER)),
            service.lens(REQUEST, corrupted=True),
            service.lens(REQUEST, restored=(2, 1)),
            service.lens(REQUEST, restored=(2, 1), spec=MapSpec("mlp", window=1)),
        ]
        assert len({id(lens) for lens in lenses}) == len(lenses)

    def test_a_client_has_so_many_requests_at_a_time(self):
        service = tiny_service(max_client_runs=1)
        run = service.trace({**ASKED, "samples": 9}, "a")
        while next(run).done == 0:
            pass
        with pytest.raises(BusyError, match="1 request running"):
            service.lens(REQUEST, client="a")
        run.close()

    def test_a_full_queue_refuses(self):
        service = tiny_service(max_queue=1)
        runs = [service.trace({**ASKED, "samples": 9, "seed": seed}) for seed in (1, 2)]
        while next(runs[0]).done == 0:
            pass
        assert next(runs[1]).position == 1
        with pytest.raises(BusyError, match="1 request is waiting already"):
            service.patch(PROMPT, OTHER, PAIRS)
        for run in runs:
            run.close()

    def test_a_model_that_cannot_be_loaded_or_is_not_there(self, service):
        def load(_source, _report):
            raise SettingsError("No.")

        with pytest.raises(ModelLoadError, match=r"No\."):
            tiny_service(load).lens(REQUEST)
        with pytest.raises(SettingsError, match="is not available here"):
            service.patch(PROMPT, OTHER, PAIRS, "gpt9")


def test_each_is_logged_without_what_was_typed(service, caplog):
    caplog.set_level(logging.INFO, logger=logs.REQUESTS)
    service.lens(REQUEST)
    service.patch(PROMPT, OTHER, PAIRS)
    with pytest.raises(SettingsError):
        service.lens(REQUEST, top=0)
    lines = [json.loads(logs.JsonFormatter().format(each)) for each in caplog.records if each.name == logs.REQUESTS]
    assert [(line["event"], line["outcome"]) for line in lines] == [
        ("lens", "done"),
        ("patch", "done"),
        ("lens", "refused"),
    ]
    assert SUBJECT not in json.dumps(lines)
