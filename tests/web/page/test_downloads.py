"""A result as files, and files as results."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace

import pytest

pytest.importorskip("gradio")

import gradio as gr

from causal_tracer import HiddenFlow
from causal_tracer.errors import CausalTracerError, ExportError, ResultFormatError
from causal_tracer.results.analysis import COLUMNS, rows
from causal_tracer.results.tables import csv_text
from causal_tracer.web.page import downloads, explore
from causal_tracer.web.page.downloads import download, file_stem, html_page, open_result
from causal_tracer.web.page.lens_tab import ResultFile
from causal_tracer.web.page.summary import message_html
from causal_tracer.web.page.texts import NO_LINK_YET
from tests.support.lenses import some_lens
from tests.support.web_tiny import ASKED, flow_of, tiny_flow, tiny_service


def rows_of(flow: HiddenFlow) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(COLUMNS, rows(flow)))))


class TestJson:
    def test_opens_again_with_identical_numbers(self, tmp_path):
        path = download(tiny_flow(), "json", tmp_path / "new")
        assert HiddenFlow.load(path).to_dict() == tiny_flow().to_dict()
        assert open_result(path).to_dict() == tiny_flow().to_dict()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not json",
            b"[]",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"format": "causal_tracer.HiddenFlow"}',
            b"9" * 10_000,
        ],
    )
    def test_what_is_no_result_is_said(self, tmp_path, content):
        path = tmp_path / "upload.json"
        path.write_bytes(content)
        with pytest.raises(ResultFormatError):
            open_result(path)

    @pytest.mark.parametrize(
        "change",
        [
            {"scores": [[1.0]]},
            {"scores": "x"},
            {"low_score": None},
            {"low_score": math.nan},
            {"high_score": math.inf},
            {"subject_range": [0, 99]},
            {"kind": "<script>"},
            {"settings": {}},
            {"input_tokens": None},
            {"top_tokens": {"clean": 1}},
            {"answer_ids": "x"},
        ],
    )
    def test_what_does_not_fit_together_is_said(self, tmp_path, change):
        path = tmp_path / "upload.json"
        path.write_text(json.dumps({**tiny_flow().to_dict(), **change}))
        with pytest.raises(ResultFormatError):
            open_result(path)

    def test_too_large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(downloads, "_LARGEST_UPLOAD", 10)
        path = download(tiny_flow(), "json", tmp_path)
        with pytest.raises(ResultFormatError, match="at most"):
            open_result(path)

    def test_not_there(self, tmp_path):
        with pytest.raises(ResultFormatError, match="could not be read"):
            open_result(tmp_path / "none.json")


class TestCsv:
    def test_a_row_for_each_cell(self):
        flow = flow_of(tiny_service(), {**ASKED, "start_layer": 1})
        table = rows_of(flow)
        assert len(table) == flow.scores.numel()
        row = next(row for row in table if row["position"] == "4" and row["layer"] == "2")
        assert float(row["score"]) == float(flow.scores[4, 2])
        assert float(row["interval_low"]) == float(flow.interval()[0][4, 2])
        assert row["token"] == flow.input_tokens[4]
        empty = next(row for row in table if row["layer"] == "0")
        assert (empty["score"], empty["standard_error"]) == ("", "")

    @pytest.mark.parametrize("token", ["=1+1", "+1", "-1", "@A1", " =1", "\t=1", "\r=1", "＝1", "\n=x"])
    def test_no_token_is_a_formula(self, token):
        flow = replace(tiny_flow(), input_tokens=[token, *tiny_flow().input_tokens[1:]])
        assert rows_of(flow)[0]["token"].replace("\r\n", "\n") == f"'{token}".replace("\r\n", "\n")

    @pytest.mark.parametrize("token", [" Space", "東京", 'a,"b"', "🗼", "a=b", "مرحبا"])
    def test_other_tokens_are_as_they_are(self, token):
        flow = replace(tiny_flow(), input_tokens=[token, *tiny_flow().input_tokens[1:]])
        assert rows_of(flow)[0]["token"] == token

    def test_negative_numbers_stay_numbers(self):
        assert any(row["indirect_effect"].startswith("-") for row in rows_of(tiny_flow()))


class TestHtml:
    def test_holds_all_it_needs_and_asks_for_nothing(self):
        page = html_page(tiny_flow())
        assert "Plotly.newPlot" in page
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*", page[: page.index("Plotly.newPlot")])
        assert not [tag for tag in tags if re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", tag)]
        assert tiny_flow().prompt in page

    def test_what_was_typed_is_text(self):
        typed = "<img src=x onerror=alert(1)>"
        flow = replace(
            tiny_flow(),
            prompt=typed,
            subject=typed,
            answer=typed,
            notes=(typed,),
            input_tokens=[typed, *tiny_flow().input_tokens[1:]],
        )
        assert "<img" not in html_page(flow)


class TestLinks:
    def test_a_page_has_the_link_as_text(self):
        page = html_page(tiny_flow(), 'https://example.org/?prompt="x"&kind=mlp')
        shown = "https://example.org/?prompt=&quot;x&quot;&amp;kind=mlp"
        assert f'<a href="{shown}">{shown}</a>' in page

    @pytest.mark.parametrize(
        ("stands_there", "link"),
        [("https://example.org/?kind=mlp", "https://example.org/?kind=mlp"), (NO_LINK_YET, ""), ("javascript:x", "")],
    )
    def test_words_in_the_place_of_a_link_are_left_out(self, tmp_path, monkeypatch, stands_there, link):
        given = []

        def noted(flow, format, folder, address):
            given.append(address)
            return folder / "x.pdf"

        monkeypatch.setattr(explore, "download", noted)
        explore.write_file("mlp", "pdf", "mlp", {"mlp": tiny_flow()}, True, stands_there)
        assert given == [link]


class TestButtons:
    """The tab and the format that a page's event names are not trusted."""

    def test_each_tabs_button_writes_the_file_of_its_tab(self):
        flow = tiny_flow()
        results = [
            part for tab in explore.MAP_TABS for part in ("mlp", {"mlp": flow} if tab == "mlp" else None, True, "")
        ]
        path, words = explore.write_chosen_file(gr.SelectData(None, {"index": "mlp", "value": "csv"}), *results)
        assert path.endswith(".csv")
        assert words == message_html()
        lost, words = explore.write_chosen_file(gr.SelectData(None, {"index": "hidden", "value": "csv"}), *results)
        assert lost is None
        assert "Press Run again" in words

    @pytest.mark.parametrize("value", ["exe", "/../../../x.csv", "", None, ["csv"]], ids=str)
    def test_no_other_format_becomes_a_path(self, value):
        results = ["mlp", {"mlp": tiny_flow()}, True, ""] * len(explore.MAP_TABS)
        path, words = explore.write_chosen_file(gr.SelectData(None, {"index": "mlp", "value": value}), *results)
        assert path is None
        assert "is not known" in words
        path, words = ResultFile("").write(gr.SelectData(None, {"index": "lens", "value": value}), some_lens())
        assert path is None
        assert "is not known" in words

    @pytest.mark.parametrize("index", ["lens", "", None, [1, 2]], ids=str)
    def test_no_other_tab_has_a_file(self, index):
        results = ["mlp", {"mlp": tiny_flow()}, True, ""] * len(explore.MAP_TABS)
        path, words = explore.write_chosen_file(gr.SelectData(None, {"index": index, "value": "csv"}), *results)
        assert path is None
        assert "tab" in words


class TestPictures:
    def test_without_a_browser_it_is_said(self, tmp_path, monkeypatch):
        def missing(figure, path, scale):
            raise ExportError("Writing needs Chrome or Chromium.")

        monkeypatch.setattr(downloads, "save_figure", missing)
        with pytest.raises(ExportError, match="Chrome or Chromium"):
            download(tiny_flow(), "png", tmp_path)

    @pytest.mark.nightly
    @pytest.mark.parametrize(("ending", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
    def test_are_drawn(self, tmp_path, ending, start):
        try:
            path = download(tiny_flow(), ending, tmp_path)
        except ExportError as error:
            pytest.skip(str(error))
        assert path.read_bytes().startswith(start)


def test_names_say_nothing_that_was_typed(tmp_path):
    flow = replace(tiny_flow(), prompt="../../etc/passwd", subject="a/b")
    assert re.fullmatch(r"causal-trace-hidden-[0-9a-f]{10}", file_stem(flow))
    assert file_stem(flow) != file_stem(tiny_flow())
    assert download(flow, "csv", tmp_path).parent == tmp_path


def test_an_unknown_format(tmp_path):
    with pytest.raises(CausalTracerError, match="json, csv, html, png, svg, pdf"):
        download(tiny_flow(), "exe", tmp_path)
