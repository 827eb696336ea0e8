"""The files of Gradio's front end: asked for early, compressed once, kept by browsers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
import brotli
from starlette.applications import Starlette
from starlette.testclient import TestClient

from causal_tracer.web import front_end
from causal_tracer.web.front_end import assets_route, preload_tag

SCRIPT = "export const answer = 42;\n" * 200


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    (tmp_path / "index-a1b2.js").write_text(SCRIPT)
    (tmp_path / "font-c3d4.woff2").write_bytes(b"wOF2")
    return tmp_path


@pytest.fixture
def client(assets: Path) -> TestClient:
    return TestClient(Starlette(routes=assets_route(assets)))


class TestPreload:
    def test_it_names_the_one_file_that_has_plotly(self, tmp_path: Path) -> None:
        assert preload_tag(tmp_path) == ""
        (tmp_path / "PlotlyPlot-a1.js").touch()
        (tmp_path / "Plot-b2.js").touch()
        assert 'href="./assets/PlotlyPlot-a1.js"' in preload_tag(tmp_path)
        (tmp_path / "PlotlyPlot-c3.js").touch()
        assert preload_tag(tmp_path) == ""

    def test_the_installed_gradio_has_it(self) -> None:
        assert "/PlotlyPlot-" in preload_tag()


class TestAssets:
    def test_a_script_is_compressed_once_for_all_requests(self, client: TestClient, monkeypatch: Any) -> None:
        compressed: list[bytes] = []

        def compress(text: bytes, **options: Any) -> bytes:
            compressed.append(text)
            return bytes(compress_once(text, **options))

        compress_once = brotli.compress
        monkeypatch.setattr(front_end.brotli, "compress", compress)
        for _ in range(3):
            answer = client.get("/assets/index-a1b2.js", headers={"accept-encoding": "gzip, br"})
            assert answer.headers["content-encoding"] == "br"
            assert int(answer.headers["content-length"]) < len(SCRIPT) / 10
            assert answer.headers["vary"] == "accept-encoding"
            assert "javascript" in answer.headers["content-type"]
            assert answer.text == SCRIPT
        assert compressed == [SCRIPT.encode()]

    @pytest.mark.parametrize(
        ("name", "encodings"), [("index-a1b2.js", "gzip"), ("index-a1b2.js", "identity"), ("font-c3d4.woff2", "br")]
    )
    def test_others_get_the_file_as_it_is(self, client: TestClient, assets: Path, name: str, encodings: str) -> None:
        answer = client.get(f"/assets/{name}", headers={"accept-encoding": encodings})
        assert "content-encoding" not in answer.headers
        assert answer.content == (assets / name).read_bytes()

    @pytest.mark.parametrize("encodings", ["br", "identity"])
    def test_a_browser_keeps_a_file_for_a_year_and_is_not_sent_it_again(
        self, client: TestClient, encodings: str
    ) -> None:
        first = client.get("/assets/index-a1b2.js", headers={"accept-encoding": encodings})
        assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
        headers = {"accept-encoding": encodings, "if-none-match": first.headers["etag"]}
        again = client.get("/assets/index-a1b2.js", headers=headers)
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize("path", ["nothing.js", "", "../secret.js", "%2e%2e/secret.js", "/etc/passwd", "a%00.js"])
    def test_nothing_else_is_sent(self, client: TestClient, assets: Path, path: str) -> None:
        (assets.parent / "secret.js").write_text("secret")
        assert client.get(f"/assets/{path}").status_code == 404

    def test_every_name_of_the_installed_gradio_holds_a_hash(self) -> None:
        names = [path.name for path in front_end._ASSETS.iterdir()]
        # Eight characters, and a digit where two files would have one name. A word would have neither case nor digit.
        hashes = [re.search(r"-([\w-]{8}\d?)\.\w+$", name) for name in names]
        assert [name for name, found in zip(names, hashes, strict=True) if not found] == []
        assert sum(bool(re.search("[A-Z0-9]", found[1])) for found in hashes if found) > 0.99 * len(names) > 100

    def test_gradio_sends_its_files_itself_if_they_are_elsewhere(self, tmp_path: Path) -> None:
        assert assets_route(tmp_path / "none") == []
