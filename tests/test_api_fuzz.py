"""Any arguments of the public functions give a valid result, or a `CausalTracerError` with a message."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import causal_tracer
from causal_tracer import (
    CausalTracer,
    CausalTracerError,
    HiddenFlow,
    HiddenFlowQuery,
    LayerConfig,
    LogitLens,
    MapSpec,
    OtherPrompt,
    RunOptions,
    SamplesUntil,
    TraceRequest,
    guess_subject,
    load_model,
    plot_hidden_flow_heatmap,
    plot_lens,
    save_figure,
)
from causal_tracer.corruption import CORRUPTIONS, SubjectsNoise
from causal_tracer.metrics.metric import METRICS
from causal_tracer.results.flow import HiddenFlow as Flow
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

FEW, MANY = 20, 3000


class NotSerialisable:
    """An object of no use to anyone."""


def bad_metric(value: Any) -> Callable[[Any], Any]:
    return lambda _target: lambda _logits: value


ODD: list[Any] = [
    object(),
    NotSerialisable,
    NotSerialisable(),
    np.array([1.0, 2.0]),
    np.float32(1.5),
    np.int64(3),
    np.array(2),
    torch.tensor([1, 2, 3]),
    torch.tensor(2),
    torch.tensor(math.nan),
    b"bytes",
    bytearray(b"x"),
    {1, 2},
    range(3),
    iter([1, 2]),
    len,
    lambda *args: None,
    torch.float32,
    torch.device("cpu"),
    Path("x"),
    1j,
    ...,
    Exception("x"),
    10**400,
    -(10**400),
    math.inf,
    -math.inf,
    math.nan,
    1e308,
    -0.0,
    "\ud800",
    "\x00",
    "",
    " ",
    "{num}",
    "9" * 5000,
]
odd = st.sampled_from(ODD)
plain = st.none() | st.booleans() | st.integers(-3, 500) | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    odd | plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)

# What sensible arguments are, by the parameter's name.
KINDS = st.sampled_from(["hidden", "mlp", "attention"])
texts = st.sampled_from([PROMPT, f"{SUBJECT} is in", "In truth, Steve Jobs was the founder of"])
subjects = st.sampled_from([None, SUBJECT, "Space"])
queries = st.builds(OtherPrompt, texts, subjects)
counts = st.integers(1, 3)
cells = st.tuples(st.integers(-4, 4), st.integers(0, 2)) | st.tuples(st.integers(0, 3), counts, st.integers(0, 3))
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "prompt": texts,
    "text": texts,
    "subject": subjects,
    "kind": st.sampled_from(["hidden", "mlp", "attention", "head"]),
    "layer_kind": KINDS,
    "kinds": st.lists(KINDS, max_size=3),
    "windows": st.none() | st.dictionaries(KINDS, counts, max_size=2),
    "answer_id": st.none() | st.integers(0, 390),
    "answer_id_override": st.none() | st.integers(0, 390),
    "override_answer_id": st.none() | st.integers(0, 390),
    "samples": counts | st.builds(SamplesUntil, st.floats(0.5, 1), st.just(2), st.just(4)),
    "window": counts,
    "seed": st.integers(0, 2**32 - 1),
    "patch_seed": st.integers(0, 2**32 - 1),
    "batch_size": st.none() | st.integers(1, 64),
    "start_layer": st.integers(0, 1),
    "end_layer": st.none() | st.integers(2, 3),
    "subject_tokens_only": st.booleans(),
    "patch_subject_tokens_only": st.booleans(),
    "occurrence": st.sampled_from(["first", "last"]),
    "engine": st.sampled_from(["auto", "full"]),
    "answer": st.none() | st.sampled_from([" Paris", "Seattle"]),
    "foil": st.none() | st.just(" Rome"),
    "corruption": st.sampled_from(sorted(CORRUPTIONS)),
    "metric": st.sampled_from(sorted(METRICS)),
    "direction": st.sampled_from(["restore", "corrupt"]),
    "positions": st.none() | st.just((3, 4)),
    "read": st.none() | st.integers(5, 9),
    "top_tokens": st.integers(0, 2),
    "placebo": st.none() | queries,
    "second": st.none() | queries,
    "align": st.sampled_from(["auto", "tokens", "spans"]),
    "mean_over": st.just(()) | st.just((PROMPT,)),
    "elsewhere": st.none() | st.integers(0, 9),
    "severed": st.none() | KINDS,
    "width": st.floats(0.01, 1),
    "step": st.integers(2, 4),
    "most": st.integers(4, 8),
    "queries": st.lists(texts | queries, max_size=2),
    "facts": st.lists(texts | queries, min_size=1, max_size=2),
    "multipliers": st.lists(st.floats(0.5, 5), min_size=1, max_size=2),
    "progress": st.none() | st.just(lambda _done, _total: None),
    "cancelled": st.none() | st.just(lambda: False) | st.just(lambda: True),
    "token": st.none() | st.integers(-9, 7),
    "level": st.floats(0.1, 0.9),
    "count": counts,
    "title": st.none() | st.text(max_size=9),
    "xlabel": st.none() | st.text(max_size=9),
    "font_family": st.sampled_from(["", "Arial"]),
    "color": st.none() | st.sampled_from(["Greens", ["white", "black"]]),
    "tick_interval": counts,
    "skip_final_labels_portion": st.floats(0, 1),
    "height": st.none() | st.integers(100, 500),
    "limits": st.none() | st.just((0.0, 1.0)),
    "write_top_tokens": st.booleans(),
    "scale": st.floats(0.5, 2),
    "savepdf": st.none(),
    "show": st.just(False),
    "layer_config": st.none() | st.just(causal_tracer.LLAMA_LAYER_CONFIG),
    "noise": st.none() | st.floats(0, 5) | st.sampled_from(["2 sigma", SubjectsNoise((SUBJECT,))]),
    "device": st.none() | st.just("cpu"),
    "model_id": st.none() | st.just("tiny"),
    "revision": st.none() | st.just("main"),
    "hidden_layers_matcher": st.just("model.layers.{num}"),
    "attention_layers_matcher": st.just("model.layers.{num}.self_attn"),
    "mlp_layers_matcher": st.just("model.layers.{num}.mlp"),
    "embedding_layer": st.just("model.embed_tokens"),
    "dtype": st.none() | st.sampled_from(["float32", "auto"]),
    "device_map": st.none(),
    "trust_remote_code": st.just(False),
    "request": st.builds(TraceRequest, texts, subjects, KINDS, samples=counts),
    "specs": st.dictionaries(st.sampled_from("ab"), st.builds(MapSpec, KINDS, counts), max_size=2),
    "name": st.sampled_from(["no such model", "nobody/nothing", "embedded-of-nobody", ""]),
    "result": st.builds(lambda: flow()),
    "top": counts,
    "corrupted": st.booleans(),
    "restored": st.none() | st.tuples(st.integers(-9, 9), st.integers(0, 2)),
    "spec": st.none() | st.builds(MapSpec, KINDS, counts),
    "options": st.none() | st.builds(RunOptions),
    "source": texts | st.sampled_from(["clean", "placebo", "zero", "mean"]),
    "base": texts,
    "pairs": st.none() | st.just(((3, 3), (-1, -1))) | st.lists(st.tuples(cells, cells), min_size=1, max_size=2),
    "site": KINDS | st.just("head"),
    "answers": st.none() | st.lists(st.sampled_from([" Paris", 7]), max_size=2),
    "lens": st.builds(lambda: lens()),
    "shade": st.sampled_from(["top", "answer", "entropy"]),
}
# Odd values that belong to one parameter only.
ODD_FOR: dict[str, st.SearchStrategy[Any]] = {
    "metric": st.sampled_from(
        [
            *map(bad_metric, [math.nan, None, torch.tensor(1.0), torch.full((7,), math.nan), "x", []]),
            lambda _target: None,
            lambda _target: lambda logits: logits,
            lambda _target: lambda logits: logits[:, 0, 0].log(),
            lambda _target: lambda logits: logits[:, 0, 0] * math.inf,
            lambda _target: lambda logits: 1 // 0,
        ]
    ),
    "corruption": st.sampled_from(
        [
            lambda subject, samples: subject.embedded,
            lambda subject, samples: subject.embedded[None] * math.nan,
            lambda subject, samples: None,
            lambda subject, samples: 1 // 0,
        ]
    ),
    "hidden_layers_matcher": st.sampled_from([lambda _model, _n: 1 // 0, lambda _model, _n: [], lambda: "x"]),
}


@st.composite
def arguments(draw: st.DrawFn, function: Callable[..., Any], *, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Arguments of a function that are sensible, but for a few that may be anything; some are left at their default."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in {*skip, "self", "cls"}]
    names = [parameter.name for parameter in parameters]
    wild = draw(st.sets(st.sampled_from(names), max_size=2))
    given_: dict[str, Any] = {}
    for parameter in parameters:
        required = parameter.default is inspect.Parameter.empty
        if parameter.name in wild:
            value = draw(ODD_FOR.get(parameter.name, anything) | anything)
            # What the caller's own function raises is not the package's error.
            given_[parameter.name] = None if parameter.name == "progress" and callable(value) else value
        elif parameter.name not in SENSIBLE and required:
            given_[parameter.name] = draw(anything)
        elif parameter.name in SENSIBLE and (required or draw(st.integers(0, 3)) == 0):
            given_[parameter.name] = draw(SENSIBLE[parameter.name])
    return given_


def examples(number: int) -> Any:
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(call: Callable[[], Any]) -> Any:
    """Return a call's result, or None if it raised one of the package's errors with a message."""
    try:
        return call()
    except CausalTracerError as error:
        said = str(error)
    assert said.strip()
    return None


def check_flow(flow: HiddenFlow) -> None:
    text = json.dumps(flow.to_dict(), allow_nan=False)
    again = HiddenFlow.from_dict(json.loads(text))
    assert again.scores.shape == flow.scores.shape
    assert math.isfinite(flow.high_score)
    assert math.isfinite(flow.low_score)
    assert not flow.sample_scores.isinf().any()


@cache
def tracer() -> CausalTracer:
    return CausalTracer(tiny_model("llama"), tiny_tokenizer(), noise=1.5)


@cache
def flow() -> HiddenFlow:
    return tracer().trace(PROMPT, SUBJECT, samples=2, top_tokens=2)


@cache
def lens() -> LogitLens:
    return tracer().lens(PROMPT)


@cache
def figure() -> Any:
    return plot_hidden_flow_heatmap(flow(), show=False)


# What is called, each with arguments that were drawn ------------------------------------------------------------------


def record(kind: type) -> Callable[[dict[str, Any]], None]:
    def call(given_: dict[str, Any]) -> None:
        made = outcome(lambda: kind(**given_))
        if made is not None:
            assert repr(made)

    return call


def trace(given_: dict[str, Any]) -> None:
    request = outcome(lambda: TraceRequest(**given_))
    if request is not None:
        found = outcome(lambda: tracer().trace(request))
        if found is not None:
            check_flow(found)


def heads(given_: dict[str, Any]) -> None:
    request = outcome(lambda: TraceRequest(**given_))
    if request is not None:
        found = outcome(lambda: tracer().trace_maps(request, {"heads": MapSpec("head")}))
        if found is not None:
            check_flow(found["heads"])


def one_map(given_: dict[str, Any]) -> None:
    spec = outcome(lambda: MapSpec(**given_))
    if spec is not None:
        request = TraceRequest(PROMPT, SUBJECT, samples=2, placebo=OtherPrompt("Steve Jobs was", "Steve Jobs"))
        found = outcome(lambda: tracer().trace_maps(request, {"map": spec}))
        if found is not None:
            check_flow(found["map"])


def run_options(given_: dict[str, Any]) -> None:
    options = outcome(lambda: RunOptions(**given_))
    if options is not None:
        found = outcome(lambda: tracer().trace(PROMPT, SUBJECT, options=options, samples=1))
        if found is not None:
            check_flow(found)


def until(given_: dict[str, Any]) -> None:
    samples = outcome(lambda: SamplesUntil(**given_))
    if samples is not None:
        outcome(lambda: TraceRequest(PROMPT, SUBJECT, samples=samples))


def query(given_: dict[str, Any]) -> None:
    asked = outcome(lambda: HiddenFlowQuery(**given_))
    if asked is not None:
        for found in outcome(lambda: tracer().calculate_hidden_flows([asked], samples=1)) or []:
            check_flow(found)


def config(given_: dict[str, Any]) -> None:
    made = outcome(lambda: LayerConfig(**given_))
    if made is not None:
        found = outcome(lambda: CausalTracer(tiny_model("llama"), tiny_tokenizer(), made, noise=1.0))
        assert found is None or found.count_layers() >= 1


def constructor(given_: dict[str, Any]) -> None:
    found = outcome(lambda: CausalTracer(**{"model": tiny_model("llama"), "tokenizer": tiny_tokenizer(), **given_}))
    if found is not None:
        result = outcome(lambda: found.calculate_hidden_flow(PROMPT, SUBJECT, samples=1))
        if result is not None:
            check_flow(result)


def method(name: str) -> Callable[[dict[str, Any]], None]:
    def call(given_: dict[str, Any]) -> None:
        found = outcome(lambda: getattr(tracer(), name)(**given_))
        if isinstance(found, Iterator):
            found = outcome(lambda: list(found))
        flows = found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]
        for made in flows:
            if isinstance(made, Flow):
                check_flow(made)

    return call


def of_flow(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda given_: outcome(lambda: getattr(flow(), name)(**given_))


def load(given_: dict[str, Any]) -> None:
    outcome(lambda: load_model(**given_))
    outcome(lambda: CausalTracer.from_pretrained(**given_))


def plot(given_: dict[str, Any]) -> None:
    figure = outcome(lambda: plot_hidden_flow_heatmap(**{"result": flow(), **given_, "show": False}))
    if figure is not None:
        assert figure.to_json()


def draw_lens(given_: dict[str, Any]) -> None:
    figure = outcome(lambda: plot_lens(**{"lens": lens(), **given_, "show": False}))
    if figure is not None:
        assert figure.to_json()


def guess(given_: dict[str, Any]) -> None:
    found = outcome(lambda: guess_subject(**given_))
    assert found is None or found in given_["text"]


def other_prompt(given_: dict[str, Any]) -> None:
    made = outcome(lambda: OtherPrompt(**given_))
    if made is not None:
        asked = outcome(lambda: TraceRequest(PROMPT, SUBJECT, second=made, metric="logit"))
        found = outcome(lambda: tracer().trace(asked, kind="mlp", window=1))
        if found is not None:
            check_flow(found)


CALLED: dict[str, tuple[Callable[..., Any], Callable[[dict[str, Any]], Any]]] = {
    "TraceRequest": (TraceRequest, trace),
    "MapSpec": (MapSpec, one_map),
    "RunOptions": (RunOptions, run_options),
    "SamplesUntil": (SamplesUntil, until),
    "HiddenFlowQuery": (HiddenFlowQuery, query),
    "OtherPrompt": (OtherPrompt, other_prompt),
    "LayerConfig": (LayerConfig, config),
    "CausalTracer": (CausalTracer.__init__, constructor),
    "heads": (TraceRequest, heads),
    **{
        name: (getattr(CausalTracer, name), method(name))
        for name in (
            "calculate_hidden_flow",
            "calculate_hidden_flows",
            "trace",
            "trace_maps",
            "stream",
            "trace_many",
            "calibrate_noise",
            "lens",
            "patch",
            "get_layer_names_of_kind",
        )
    },
    **{name: (getattr(HiddenFlow, name), of_flow(name)) for name in ("interval", "peaks")},
    "load": (HiddenFlow.load, of_flow("load")),
    "from_dict": (HiddenFlow.from_dict, of_flow("from_dict")),
    "load_model": (load_model, load),
    "plot_hidden_flow_heatmap": (plot_hidden_flow_heatmap, plot),
    "plot_lens": (plot_lens, draw_lens),
    "guess_subject": (guess_subject, guess),
}
SKIPPED = {
    "CausalTracer": frozenset({"tokenizer", "model"}),
    "plot_hidden_flow_heatmap": frozenset({"savepdf"}),
    "load_model": frozenset({"cache_dir"}),
}


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("number", [FEW, pytest.param(MANY, marks=pytest.mark.nightly)])
def test_any_arguments_give_a_result_or_one_of_the_packages_errors(name: str, number: int) -> None:
    function, call = CALLED[name]

    @examples(number)
    @given(arguments(function, skip=SKIPPED.get(name, frozenset())))
    def check(given_: dict[str, Any]) -> None:
        call(given_)

    check()


@pytest.mark.parametrize(
    "place", [*ODD, "/dev/null/x.html", "folder", "x.html/", "no_ending", "x.pdf\x00", "a/b/c.html"]
)
def test_any_place_for_a_file_is_written_to_or_refused(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    figure = plot_hidden_flow_heatmap(flow(), show=False)
    outcome(lambda: save_figure(figure, place))
    outcome(lambda: save_figure(place, "x.html"))
    outcome(lambda: save_figure(figure, "y.html", scale=place))
    outcome(lambda: flow().save(place))
    outcome(lambda: HiddenFlow.load(place))
    outcome(lambda: plot_hidden_flow_heatmap(flow(), show=False, savepdf=place) if not isinstance(place, str) else 0)


@pytest.mark.parametrize("write", [lambda path: flow().save(path), lambda path: save_figure(figure(), path)])
def test_files_are_written_into_a_folder_that_does_not_exist_yet(write: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "and deeper" / "map.html"
    write(path)
    assert path.stat().st_size > 0


def test_a_saved_result_whose_parts_are_changed_is_read_or_refused() -> None:
    saved = flow().to_dict()

    @examples(FEW * 5)
    @given(st.sampled_from(sorted(saved)), anything, st.sampled_from(sorted(saved["settings"])), st.booleans())
    def check(name: str, value: Any, setting: str, inside: bool) -> None:
        data = json.loads(json.dumps(saved))
        if inside:
            data["settings"][setting] = value
        else:
            data[name] = value
        found = outcome(lambda: HiddenFlow.from_dict(data))
        if found is not None:
            for read in (found.peaks, found.interval, found.peak_width, found.to_dataframe, found.to_dict):
                assert outcome(read) is not None
            outcome(lambda: plot_hidden_flow_heatmap(found, show=False))

    check()


def test_every_public_name_is_called_here_or_is_plain_data() -> None:
    plain_data = {"GPT2_LAYER_CONFIG", "LLAMA_LAYER_CONFIG", "LayerKind", "LayerMatcher", "__version__"}
    records_of_results = {"MapsUpdate", "LoadedModel", "TraceSettings", "CausalTracerError", "LogitLens", "PatchedRun"}
    called = {*CALLED, "HiddenFlow", "save_figure"}
    assert set(causal_tracer.__all__) <= called | plain_data | records_of_results
    methods = {name for name, value in vars(CausalTracer).items() if callable(value) and not name.startswith("_")}
    assert methods <= {*CALLED, "count_layers", "from_pretrained"}
