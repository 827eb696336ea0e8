"""First use in a notebook: short reprs, figures, pickles, and names that a user looks for."""

from __future__ import annotations

import copy
import dataclasses
import html
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import causal_tracer
from causal_tracer import (
    CausalTracer,
    CausalTracerError,
    HiddenFlow,
    LayerConfig,
    LoadedModel,
    MapSpec,
    RunOptions,
    SamplesUntil,
    TraceRequest,
    plot_hidden_flow_heatmap,
)
from causal_tracer.errors import PicklingError, ResultFormatError, SettingsError
from causal_tracer.model.layer_config import LLAMA_LAYER_CONFIG
from causal_tracer.plots.difference import plot_difference_heatmap
from causal_tracer.request.sites import KINDS
from causal_tracer.results.comparison import compare_flows
from causal_tracer.results.labels import display_token, map_title
from causal_tracer.tracing import loop
from tests.support.flows import some_flow
from tests.support.tiny_models import (
    ARCHITECTURES,
    OTHER_PROMPT,
    OTHER_SUBJECT,
    PROMPT,
    SUBJECT,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)

ROOT = Path(__file__).resolve().parents[2]
REQUEST = TraceRequest(PROMPT, SUBJECT, samples=2)


@pytest.fixture(scope="module")
def heads() -> HiddenFlow:
    return tiny_tracer("gpt2").trace_maps(REQUEST, {"heads": MapSpec("head")})["heads"]


# --- reprs ---


def test_a_map_shows_prompt_answer_scores_and_peaks() -> None:
    flow = tiny_tracer("gpt2").trace(REQUEST)
    lines = repr(flow).splitlines()
    assert len(lines) == 5
    for words in (
        PROMPT,
        SUBJECT,
        repr(flow.answer),
        f"clean {flow.high_score:.4g}",
        f"corrupted {flow.low_score:.4g}",
    ):
        assert words in repr(flow)
    peak = flow.peaks()[0]
    assert f"{peak.score:.4g} at {peak.token!r}, layer {peak.layer}" in lines[-1]
    assert "2 samples" in repr(flow)
    assert "tensor" not in repr(flow)


def test_a_map_that_is_not_complete_says_so() -> None:
    assert "4 of 8 cells computed" in repr(some_flow())
    empty = some_flow(scores=torch.full((4, 2), torch.nan), sample_scores=torch.full((3, 4, 2), torch.nan))
    assert "0 of 8 cells computed" in repr(empty)
    assert "peaks" not in repr(empty)


def test_a_long_prompt_is_shortened() -> None:
    assert len(repr(some_flow(prompt="word " * 5000))) < 1000


def test_updates_head_maps_and_models_are_short(heads: HiddenFlow) -> None:
    tracer = tiny_tracer("gpt2")
    update = next(iter(tracer.stream(REQUEST, {"map": MapSpec()})))
    assert repr(update).startswith("MapsUpdate: 0 of ")
    several = next(iter(causal_tracer.tracer.trace_maps(tracer.context, REQUEST, {"one": MapSpec("mlp", 2)})))
    assert "one: HiddenFlow: mlp, window 2" in repr(several)
    loaded = LoadedModel(tracer.model, tracer.tokenizer, "/home/me/models/tiny", "tiny", None, None)
    for shown in (update, several, heads, loaded):
        assert "tensor" not in repr(shown)
        assert len(repr(shown)) < 1000
    assert re.search(r"peaks: \S+ at head \d, layer \d", repr(heads))
    assert "Embedding" not in repr(loaded)


def test_a_tracer_names_model_layers_noise_and_device() -> None:
    tracer = CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=0.25, model_id="some/model", revision="abc")
    assert repr(tracer).startswith("CausalTracer('some/model', revision abc: GPT2LMHeadModel, ")
    for words in (f"{tracer.count_layers()} layers", "float32", "noise 0.25", "cpu"):
        assert words in repr(tracer)


# --- notebooks ---


def test_a_notebook_shows_the_figure(heads: HiddenFlow) -> None:
    flow = tiny_tracer("gpt2").trace(REQUEST)
    for result in (flow, heads):
        shown = result._repr_html_()
        assert shown is not None
        (page,) = re.findall(r'srcdoc="([^"]*)"', shown)
        assert "Plotly.newPlot" in html.unescape(page)
        assert not re.search(r"<(script|link)[^>]*(src|href)=", html.unescape(page))


def test_without_plotly_a_notebook_shows_the_text(heads: HiddenFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causal_tracer.results.reprs.find_spec", lambda name: None)
    assert some_flow()._repr_html_() is None
    assert heads._repr_html_() is None


def test_a_map_of_heads_reads_saves_and_compares_like_any_map(heads: HiddenFlow, tmp_path: Path) -> None:
    heads.save(tmp_path / "heads.json")
    loaded = HiddenFlow.load(tmp_path / "heads.json")
    assert torch.equal(known(loaded.sample_scores), known(heads.sample_scores))
    assert (repr(loaded), loaded.peaks(), loaded.request) == (repr(heads), heads.peaks(), heads.request)
    assert loaded.stored_request().map == MapSpec("head")
    assert plot_hidden_flow_heatmap(loaded, show=False) == plot_hidden_flow_heatmap(heads, show=False)
    token = len(heads.input_tokens) - 1
    best = heads.peaks(1)[0]
    head, layer = divmod(int(heads.scores.argmax()), heads.scores.shape[1])
    assert (best.position, best.token, best.head, best.layer) == (token, heads.input_tokens[token], head, layer)
    assert map_title(heads) == f"Restoring single attention heads at {display_token(best.token)!r}"
    table = heads.to_dataframe()
    assert set(table["position"]) == {token}
    assert float(table[(table["head"] == head) & (table["layer"] == layer)]["score"].iloc[0]) == best.score
    difference = compare_flows(heads, loaded)
    assert (difference.aligned_by, difference.rows[head]) == ("heads", (f"head {head}",) * 2)
    assert float(difference.values.abs().max()) == 0
    assert list(plot_difference_heatmap(difference, show=False).layout.yaxis.ticktext)[head] == f"head {head}"


def test_a_map_of_heads_is_compared_with_no_map_of_tokens(heads: HiddenFlow) -> None:
    with pytest.raises(SettingsError, match=r"4 heads and a map of \d+ tokens"):
        compare_flows(heads, tiny_tracer("gpt2").trace(REQUEST))


@pytest.mark.parametrize("token", [None, -1, 99, "1"])
def test_a_map_of_heads_without_its_token_is_refused(heads: HiddenFlow, token: Any) -> None:
    data = heads.to_dict()
    data["settings"]["token"] = token
    with pytest.raises(ResultFormatError):
        HiddenFlow.from_dict(data)


# --- pickles and copies ---


def known(values: torch.Tensor) -> torch.Tensor:
    return values.nan_to_num(nan=-1.0) if values.is_floating_point() else values


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(known(first), known(second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if dataclasses.is_dataclass(first):
        return all(same(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
    return bool(first == second)


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_results_pickle_and_copy(again: Any, heads: HiddenFlow) -> None:
    tracer = tiny_tracer("gpt2")
    request = dataclasses.replace(REQUEST, top_tokens=2)
    updates = list(tracer.stream(request, {"map": MapSpec()}))
    for result in (updates[-1].flows["map"], updates[-1], heads, REQUEST, tracer.trace(REQUEST).peaks()):
        assert same(again(result), result)


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "qwen3_next"])
def test_tracers_pickle_and_copy(again: Any, family: str) -> None:
    tracer = tiny_tracer(family)
    expected = tracer.trace(REQUEST)
    copied = again(tracer)
    assert copied.model is not tracer.model
    assert copied.context.traced.model is copied.model
    assert repr(copied) == repr(tracer)
    found = copied.trace(REQUEST)
    assert torch.allclose(found.scores, expected.scores, atol=1e-6)
    assert copied.layer_config.hidden_layers_matcher == tracer.layer_config.hidden_layers_matcher
    # One that was copied traces its own model.
    with torch.no_grad():
        copied.model.get_output_embeddings().weight.mul_(2)
    assert not torch.allclose(copied.trace(REQUEST).scores, expected.scores)
    assert torch.allclose(tracer.trace(REQUEST).scores, expected.scores, atol=1e-6)


def test_every_family_has_a_layer_config_that_pickles() -> None:
    for family in ARCHITECTURES:
        pickle.dumps(tiny_tracer(family).layer_config)


def test_a_tracer_that_cannot_be_pickled_says_why() -> None:
    def mlp(_model: torch.nn.Module, layer: int) -> str:
        return f"model.layers.{layer}.mlp"

    config: LayerConfig = dataclasses.replace(LLAMA_LAYER_CONFIG, mlp_layers_matcher=mlp)
    tracer = CausalTracer(tiny_model("llama"), tiny_tokenizer(), config)
    with pytest.raises(PicklingError, match=r"layer_config cannot be pickled .*mlp") as caught:
        pickle.dumps(tracer)
    assert isinstance(caught.value, CausalTracerError)
    assert copy.deepcopy(tracer).layer_config.mlp_layers_matcher is config.mlp_layers_matcher


# --- maps do not share tensors ---


def tensors(flow: Any) -> list[torch.Tensor]:
    found = [value for value in vars(flow).values() if isinstance(value, torch.Tensor)]
    return found + list(getattr(flow, "layer_outputs", {}).values())


def assert_apart(flows: list[Any]) -> None:
    """Changing any tensor of one in place changes no other."""
    before = [[tensor.clone() for tensor in tensors(flow)] for flow in flows]
    for number, flow in enumerate(flows):
        for tensor in tensors(flow):
            tensor.zero_()
        for other in range(number + 1, len(flows)):
            for found, expected in zip(tensors(flows[other]), before[other], strict=True):
                assert torch.equal(known(found), known(expected))


def test_maps_of_one_call_share_no_tensors() -> None:
    tracer = tiny_tracer("gpt2")
    specs = {"one": MapSpec("mlp", 1), "three": MapSpec("mlp", 3), "hidden": MapSpec("hidden", 1)}
    flows = tracer.trace_maps(REQUEST, specs)
    expected = {name: tensor.clone() for name, tensor in flows["one"].layer_outputs.items()}
    assert expected
    assert_apart(list(flows.values()))
    again = tracer.trace_maps(REQUEST, specs)["one"]
    assert same(dict(again.layer_outputs), expected)
    maps = {kind: MapSpec(kind) for kind in KINDS}
    assert_apart(list(tracer.trace_maps(TraceRequest(PROMPT, SUBJECT, samples=2), maps).values()))


def test_maps_of_several_prompts_share_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [REQUEST, dataclasses.replace(REQUEST, prompt=OTHER_PROMPT, subject=OTHER_SUBJECT), REQUEST]
    monkeypatch.setattr(loop, "sharing_pays", lambda _context: True)
    assert_apart(tiny_tracer("gpt2").trace_many(requests))


@pytest.mark.parametrize("samples", [2, SamplesUntil(1e-9, most=4, step=2)])
def test_updates_and_the_final_map_share_no_tensors(samples: Any) -> None:
    tracer = tiny_tracer("gpt2")
    request, options = dataclasses.replace(REQUEST, samples=samples), RunOptions(batch_size=8)
    updates = list(tracer.stream(request, {"map": MapSpec()}, options))
    assert len(updates) > 2
    assert updates[-1].flows["map"].layer_outputs
    assert_apart([update.flows["map"] for update in updates])


def test_changing_the_versions_of_one_result_changes_no_other() -> None:
    first, second = (tiny_tracer("gpt2").trace(REQUEST).settings.versions for _ in range(2))
    assert first == second
    first["torch"] = "changed"  # type: ignore[index]
    assert second["torch"] != "changed"


# --- names and words ---


def test_dir_lists_the_public_names() -> None:
    assert dir(causal_tracer) == sorted(causal_tracer.__all__)


def test_no_message_or_page_names_extras_of_another_project() -> None:
    """PyPI's causal-tracer is another project's, so its extras install something else."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "spaces").rglob("*.md")]
    pages += [*(ROOT / "causal_tracer").rglob("*.py"), *(ROOT / "examples").rglob("*.py"), ROOT / "app.py"]
    found = [str(page.relative_to(ROOT)) for page in pages if "causal-tracer[" in page.read_text(encoding="utf-8")]
    notebooks = [*(ROOT / "examples").rglob("*.ipynb"), *(ROOT / "benchmarks").rglob("*.md")]
    found += [str(page.relative_to(ROOT)) for page in notebooks if "causal-tracer[" in page.read_text(encoding="utf-8")]
    assert found == []


def test_log_lines_are_sentences() -> None:
    """A sentence ends with a full stop, or with the words of an error that does."""
    pattern = re.compile(r'_?logger\.(?:info|warning|error|exception)\(\s*"((?:[^"\\]|\\.)*)"')
    lines = [
        line
        for path in (ROOT / "causal_tracer").rglob("*.py")
        for line in pattern.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(lines) > 10
    assert [line for line in lines if not line.endswith((".", ": %s")) and line != "%s"] == []
    assert [line for line in lines if len(line.split()) < 3 and line != "%s"] == []


def test_the_repr_of_a_saved_result_is_the_same() -> None:
    flow = tiny_tracer("gpt2").trace(REQUEST)
    assert repr(type(flow).from_dict(json.loads(json.dumps(flow.to_dict())))) == repr(flow)
