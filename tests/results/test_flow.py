"""HiddenFlow: saved and opened again with identical numbers, damaged files refused, the standard error."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_tracer import HiddenFlow, TraceSettings
from causal_tracer.errors import CausalTracerError, ExportError, ResultFormatError
from tests.support.flows import some_flow
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_tracer


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    known = ~expected.isnan()
    assert torch.equal(found[known], expected[known])


def reopened(flow: HiddenFlow, tmp_path: Path) -> HiddenFlow:
    flow.save(tmp_path / "flow.json")
    return HiddenFlow.load(tmp_path / "flow.json")


def assert_same(found: HiddenFlow, expected: HiddenFlow) -> None:
    for item in dataclasses.fields(HiddenFlow):
        left, right = getattr(found, item.name), getattr(expected, item.name)
        if item.name == "layer_outputs":
            assert left == {}
        elif isinstance(right, torch.Tensor):
            same_bits(left, right)
        else:
            assert left == right, item.name
            assert type(left) is type(right), item.name


def test_a_saved_result_opens_with_identical_numbers(tmp_path: Path) -> None:
    assert_same(reopened(some_flow(), tmp_path), some_flow())


@pytest.mark.parametrize("changes", [{}, {"start_layer": 1, "patch_subject_tokens_only": True}], ids=str)
def test_a_traced_result_opens_with_identical_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    flow = tiny_tracer("gemma3_text").calculate_hidden_flow(PROMPT, SUBJECT, "attention", samples=3, **changes)
    again = reopened(flow, tmp_path)
    assert_same(again, flow)
    assert again.settings == flow.settings
    same_bits(again.standard_error, flow.standard_error)
    same_bits(again.indirect_effect, flow.indirect_effect)
    assert again.total_effect == flow.total_effect


@pytest.mark.parametrize(
    "values",
    [
        [0.1, 1 / 3, 1e-38, 1e-45],
        [1.0, 0.0, -0.0, 0.9999999],
        [1.17549435e-38, 3e-42, 0.5, 2**-24],
    ],
)
def test_floats_survive_to_the_last_bit(values: list[float], tmp_path: Path) -> None:
    scores = torch.tensor(values)[:, None].expand(4, 2).clone()
    again = reopened(some_flow(scores=scores, low_score=math.pi / 10, high_score=1e-300), tmp_path)
    assert torch.equal(again.scores.view(torch.int32), scores.view(torch.int32))
    assert (again.low_score, again.high_score) == (math.pi / 10, 1e-300)


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    some_flow().save(tmp_path / "a.json")
    HiddenFlow.load(tmp_path / "a.json").save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_the_file_is_strict_json_in_utf8_that_others_can_read(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    some_flow().save(tmp_path / "flow.json")
    text = (tmp_path / "flow.json").read_bytes().decode("utf-8")
    data = json.loads(text, parse_constant=refuse)
    assert "東🚀" in text
    assert data["scores"][0][1] is None
    assert data["format_version"] == 1


@pytest.mark.parametrize(
    "text", ["東京🚀", "العربية", 'quotes " and \\ backslashes', "lines\n\r\u2028", "\x00\x1f", "\ud7ff\ue000"]
)
def test_prompts_in_any_script_survive(text: str, tmp_path: Path) -> None:
    flow = some_flow(prompt=text, subject=text, answer=text, input_tokens=[text] * 4, notes=(text,))
    assert_same(reopened(flow, tmp_path), flow)


def test_a_prompt_with_half_a_surrogate_pair_is_saved_or_refused_without_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flow.json"
    some_flow().save(path)
    before = path.read_bytes()
    try:
        some_flow(prompt="\ud83d").save(path)
    except CausalTracerError:
        assert path.read_bytes() == before, "the earlier file was lost"


@pytest.mark.parametrize("path", ["flow.json", "a folder with spaces/東.json"])
def test_paths_may_be_texts(path: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    some_flow().save(str(tmp_path / path))
    assert_same(HiddenFlow.load(str(tmp_path / path)), some_flow())


# Files that are none --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'"x"', b"{}", b"7", b'{"format": "other"}', b"[" * 100_000]
)
def test_files_that_are_no_results_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "flow.json").write_bytes(content)
    with pytest.raises(ResultFormatError):
        HiddenFlow.load(tmp_path / "flow.json")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    some_flow().save(tmp_path / "flow.json")
    content = (tmp_path / "flow.json").read_bytes()
    for length in range(0, len(content), 37):
        (tmp_path / "cut.json").write_bytes(content[:length])
        with pytest.raises(ResultFormatError):
            HiddenFlow.load(tmp_path / "cut.json")


@pytest.mark.parametrize("version", [2, 99, "1", None, 0, 1.5])
def test_results_of_another_version_are_refused_with_both_versions(version: Any) -> None:
    data = {**some_flow().to_dict(), "format_version": version}
    with pytest.raises(ResultFormatError, match=rf"{version!r}.*1"):
        HiddenFlow.from_dict(data)


FIELDS = [key for key in some_flow().to_dict() if key not in ("format", "format_version")]
# Results of earlier versions lack them.
OPTIONAL = ("audit", "request", "alignment")


@pytest.mark.parametrize("field", [field for field in FIELDS if field not in OPTIONAL])
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    data = some_flow().to_dict()
    del data[field]
    with pytest.raises(ResultFormatError, match=field):
        HiddenFlow.from_dict(data)


STRANGE = [None, "x", -1, 10**30, math.inf, 1e308, [], {}, [[]], [["x"]], [[1.0], [1.0, 2.0]], {"a": 1}, [None], True]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_a_strange_value_is_refused_or_gives_a_result_that_can_be_used(field: str, value: Any) -> None:
    """Any content of a file gives an error of the package, or a result whose every part works."""
    data = {**some_flow().to_dict(), field: copy.deepcopy(value)}
    try:
        flow = HiddenFlow.from_dict(data)
    except ResultFormatError:
        return
    assert flow.standard_error.shape == flow.indirect_effect.shape == flow.scores.shape
    assert isinstance(flow.total_effect, float)
    assert all(isinstance(token, str) for token in flow.input_tokens)


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(TraceSettings)])
@pytest.mark.parametrize("value", [None, "x", [], {}, -1], ids=repr)
def test_strange_settings_are_refused_or_can_be_drawn(name: str, value: Any) -> None:
    from causal_tracer import plot_hidden_flow_heatmap

    data = some_flow().to_dict()
    data["settings"] = {**data["settings"], name: value}
    try:
        flow = HiddenFlow.from_dict(data)
    except ResultFormatError:
        return
    plot_hidden_flow_heatmap(flow, show=False)


def test_unknown_settings_are_refused() -> None:
    data = some_flow().to_dict()
    data["settings"] = {**data["settings"], "temperature": 1}
    with pytest.raises(ResultFormatError, match="temperature"):
        HiddenFlow.from_dict(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_tokens": ["a", "b", "c"]},
        {"input_ids": [1, 2]},
        {"subject_range": [3, 3]},
        {"subject_range": [2, 9]},
        {"subject_range": [-1, 2]},
        {"kind": "foo"},
        {"scores": [[0.1, 0.2]] * 3},
        {"scores": [[0.1]] * 4},
        {"low_sample_scores": [0.1]},
        {"sample_scores": [[[0.1, 0.2]] * 4] * 2},
        {"sample_scores": []},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ResultFormatError):
        HiddenFlow.from_dict({**some_flow().to_dict(), **changes})


def test_a_file_that_cannot_be_read_or_written_is_one_of_the_packages_errors(tmp_path: Path) -> None:
    with pytest.raises(ResultFormatError, match=r"nowhere\.json.* could not be read"):
        HiddenFlow.load(tmp_path / "nowhere.json")
    with pytest.raises(ExportError, match="could not be written"):
        some_flow().save(tmp_path)
    with pytest.raises(ExportError, match="could not be written"):
        dataclasses.replace(some_flow(), prompt="\ud800").save(tmp_path / "flow.json")


# Derived numbers ------------------------------------------------------------------------------------------------------


def test_effects_are_differences() -> None:
    flow = some_flow()
    assert flow.total_effect == flow.high_score - flow.low_score
    torch.testing.assert_close(flow.indirect_effect, flow.scores - flow.low_score, rtol=0, atol=0, equal_nan=True)


def test_the_standard_error_is_that_of_the_paired_differences() -> None:
    flow = some_flow()
    differences = [
        float(flow.sample_scores[sample, 2, 0]) - float(flow.low_sample_scores[sample]) for sample in range(3)
    ]
    mean = sum(differences) / 3
    by_hand = math.sqrt(sum((value - mean) ** 2 for value in differences) / 2) / math.sqrt(3)
    assert float(flow.standard_error[2, 0]) == pytest.approx(by_hand, rel=1e-5)
    assert flow.standard_error[:, 1].isnan().all()


def test_a_cell_that_changes_nothing_has_no_error() -> None:
    low = torch.tensor([0.1, 0.4, 0.3])
    samples = low[:, None, None].expand(3, 4, 2).clone()
    flow = some_flow(sample_scores=samples, low_sample_scores=low)
    assert torch.equal(flow.standard_error, torch.zeros(4, 2))


def test_one_sample_has_no_standard_error() -> None:
    flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
    assert flow.standard_error.shape == flow.scores.shape
    assert flow.standard_error.isnan().all()


def test_the_text_of_a_result_is_short() -> None:
    flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert "layer_outputs" not in repr(flow)
    assert "sample_scores" not in repr(flow)
