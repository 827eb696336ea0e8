"""The gallery: its results are there, open from links, and show what their sentences say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest
import torch

from causal_tracer.errors import SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.records import StoredRequest
from causal_tracer.results.analysis import share
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.tracer import CausalTracer
from causal_tracer.web.page.thumbnails import is_picture, levels
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.gallery import (
    FOLDER,
    GALLERY,
    GalleryEntry,
    gallery_entry,
    gallery_flows,
    gallery_pictures,
)
from causal_tracer.web.service.inspection import map_warnings
from causal_tracer.web.service.links import fields_of, parse_link, share_link
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.stored import stored_map

each_entry = pytest.mark.parametrize("entry", GALLERY, ids=lambda entry: entry.name)


def best(flow: HiddenFlow, row: int) -> float:
    """The largest share of the total effect in a row."""
    return max(share(flow, effect) for effect in flow.indirect_effect[row].tolist())


def percent(value: float) -> str:
    return f"{value:.0%}"


def row_of(flow: HiddenFlow, token: str) -> int:
    return [text.strip() for text in flow.input_tokens].index(token)


def subject_rows(flow: HiddenFlow) -> range:
    return range(*flow.subject_range)


def only(entry: GalleryEntry) -> HiddenFlow:
    (flow,) = gallery_flows(entry).values()
    return flow


# What each sentence claims -------------------------------------------------------------------------------------------


def classic(entry: GalleryEntry) -> None:
    flow = only(entry)
    needle = row_of(flow, "Needle")
    assert percent(best(flow, needle)) in entry.sentence
    assert flow.scores[needle].argmax() < flow.scores.shape[1] // 2 < flow.scores[-1].argmax()
    assert best(flow, -1) > 0.99


def carried(entry: GalleryEntry) -> None:
    flows = gallery_flows(entry)
    assert list(flows) == ["hidden", "mlp", "attention"]
    assert flows["mlp"].answer == " New"
    assert f"{percent(best(flows['attention'], -1))} of" in entry.sentence
    in_mlp = [best(flows["mlp"], row) for row in subject_rows(flows["mlp"])]
    assert f"at most {percent(max(in_mlp))}" in entry.sentence


def six_tokens(entry: GalleryEntry) -> None:
    flow = only(entry)
    *others, last = [best(flow, row) for row in subject_rows(flow)]
    assert len(others) == 5
    assert f"{percent(last)} of it, and no other one more than {percent(max(others))}" in entry.sentence
    assert flow.input_tokens[flow.subject_range[1] - 1] == " Familia"


def one_token_restores(subject: str, answer: str) -> Callable[[GalleryEntry], None]:
    def check(entry: GalleryEntry) -> None:
        flow = only(entry)
        (row,) = subject_rows(flow)
        assert (flow.subject, flow.answer.strip()) == (subject, answer)
        assert best(flow, row) > 0.95
        assert flow.high_score > 0.5

    return check


def chat(entry: GalleryEntry) -> None:
    flow = only(entry)
    assert isinstance(flow.stored_request().request.prompt, ChatText)
    assert (flow.answer, flow.input_tokens[flow.subject_range[0]]) == ("Paris", " France")
    assert best(flow, flow.subject_range[0]) > 0.95
    assert flow.top_tokens is not None
    assert (flow.top_tokens.clean[0].text, flow.top_tokens.corrupted[0].text) == ("Paris", "Rome")
    assert f"{flow.high_score:.2f} to {flow.low_score:.2f}" in entry.sentence


def pair(entry: GalleryEntry) -> None:
    flow = only(entry)
    assert flow.settings.second == entry.fields["second_prompt"]
    # The difference of logits: Seattle is more probable than Paris above 0.
    assert (flow.answer, flow.settings.foil) == (" Seattle", " Paris")
    assert flow.low_score < 0 < float(flow.scores[-1].max())
    assert float(flow.scores[list(subject_rows(flow))].max()) < 0
    assert percent(max(best(flow, row) for row in subject_rows(flow))) in entry.sentence


def heads(entry: GalleryEntry) -> None:
    flow = only(entry)
    first, second = flow.peaks(2)
    assert (first.head, first.layer, flow.answer) == (1, 12, " Mary")
    assert first.share > 0.99 > 0.5 > second.share


def severed(entry: GalleryEntry) -> None:
    flow, plain = only(entry), only(gallery_entry("classic"))
    shares = [percent(best(each, row_of(each, "Needle"))) for each in (flow, plain)]
    assert f"{shares[0]} instead of {shares[1]}" in entry.sentence
    assert best(flow, -1) > 0.99


def blocked(entry: GalleryEntry) -> None:
    flow = only(entry)
    peak = flow.peaks(1)[0]
    assert (peak.token, peak.layer) == (" Needle", 10)
    assert f"{flow.high_score:.2f} to {peak.score:.2f}" in entry.sentence


def unread(entry: GalleryEntry) -> None:
    flow = only(entry)
    assert f"P = {flow.high_score:.2f}" in entry.sentence
    assert any("unsure of this answer" in words for words in map_warnings(flow))
    # What a reader could fall for: the map has a pattern.
    assert flow.peaks(1)[0].share > 0.9


def noise(entry: GalleryEntry) -> None:
    flow, usual = only(entry), stored_map("mlp")
    assert 9 < flow.settings.noise / usual.settings.noise < 11
    assert best(flow, row_of(flow, "Needle")) < 0.02
    assert percent(best(usual, row_of(usual, "Needle"))) in entry.sentence
    # No warning tells: that is what misleads.
    assert not map_warnings(flow)


CLAIMS: dict[str, Callable[[GalleryEntry], None]] = {
    "classic": classic,
    "carried": carried,
    "six-tokens": six_tokens,
    "chinese": one_token_restores("法国", "巴黎"),
    "arabic": one_token_restores("مصر", "القاهرة"),
    "chat": chat,
    "pair": pair,
    "heads": heads,
    "severed": severed,
    "blocked": blocked,
    "unread": unread,
    "noise": noise,
}


@each_entry
def test_a_sentence_is_true_of_its_numbers(entry: GalleryEntry) -> None:
    CLAIMS[entry.name](entry)
    assert entry.sentence.endswith(".")


# What is stored ------------------------------------------------------------------------------------------------------


def test_there_are_twelve_and_they_are_small() -> None:
    assert len({entry.name for entry in GALLERY}) == len(GALLERY) == 12
    sizes = [len((FOLDER / name).read_bytes()) for name in [f"{entry.name}.json.gz" for entry in GALLERY]]
    assert sum(sizes) < 1_500_000
    with pytest.raises(SettingsError, match=r"'lost'.* classic, carried"):
        gallery_entry("lost")


@each_entry
def test_a_result_is_what_the_app_computes_for_its_fields(entry: GalleryEntry) -> None:
    checked = check_fields(entry.fields, ServiceSettings())
    flows = gallery_flows(entry)
    assert list(flows) == list(checked.specs)
    for kind, flow in flows.items():
        assert flow.stored_request() == StoredRequest(checked.request, checked.specs[kind], checked.options)
        assert flow.scores.isfinite().all()
        assert flow.settings.model == entry.fields["model"]
        assert bool(map_warnings(flow)) == (entry.name == "unread")


@each_entry
def test_the_small_picture_is_of_the_result(entry: GalleryEntry) -> None:
    picture = gallery_pictures()[entry.name]
    assert picture == levels(tuple(gallery_flows(entry).values()))
    assert all(map(is_picture, picture))


@each_entry
def test_its_link_asks_for_it(entry: GalleryEntry) -> None:
    for flow in gallery_flows(entry).values():
        link = share_link(fields_of(flow), "https://example.org/", revision=flow.settings.revision)
        parsed = parse_link(dict(parse_qsl(link.partition("?")[2], keep_blank_values=True)))
        assert not parsed.problems
        checked = check_fields(parsed.fields, ServiceSettings())
        assert StoredRequest(checked.request, checked.specs[flow.kind], checked.options) == flow.stored_request()


@pytest.mark.model
@pytest.mark.nightly
@each_entry
def test_it_comes_out_again(entry: GalleryEntry) -> None:
    tracer = CausalTracer.from_pretrained(entry.fields["model"], progress=False)
    for flow in gallery_flows(entry).values():
        asked, layer = flow.stored_request(), flow.peaks(1)[0].layer
        spec: Any = replace(asked.map, start_layer=layer, end_layer=layer + 1)
        again = tracer.trace_maps(asked.request, {flow.kind: spec}, asked.options)[flow.kind]
        torch.testing.assert_close(again.scores[:, layer], flow.scores[:, layer], atol=1e-3, rtol=1e-3)
