"""A Chromium, and the app with two tiny models behind it, of which the second takes chat messages.

Every request to another host is noted, and fails: the browser resolves no name.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.web.browser.pace import LateMessages, Pace

FAILED = pytest.StashKey[bool]()
# The shell is Chromium without its windows, each of which is a page of its own: a visit costs an eighth less.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser")
PACE = Pace.chosen()
ARGS = [
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI is set: the browser tests have to run there.")
    pytest.skip(what)


@dataclass
class App:
    """A running app whose model loads only when it is let, and runs only while it may.

    `forget` drops what it knows of the pages that are open, as a restart does.
    """

    url: str
    let_load: Callable[[], None]
    may_run: threading.Event
    forget: Callable[[], None]


@dataclass
class Visits:
    """Pages of the app, and what they asked other hosts for or complained about.

    `kept` holds the pages that stay open for the next tests of the file, by how they were opened.
    """

    browser: Any
    url: str
    kept: dict[str, Any]
    strangers: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, query: str = "", tab: str = "hidden", **context: Any) -> Any:
        """Open a page as a visitor who has never been there."""
        page = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}).new_page()
        page.set_default_timeout(120_000)
        page.context.on("request", self._note_strangers)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(self.url + query)
        page.wait_for_selector(f"#ct-map-{tab} .js-plotly-plot .main-svg")
        return page

    def stay(self, **context: Any) -> Any:
        """Return the page that the file's tests before left, for tests that say themselves all that they depend on."""
        opened_as = repr(context)
        if opened_as not in self.kept:
            self.kept[opened_as] = self.open(**context)
        return self.kept[opened_as]

    def _note_strangers(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.strangers.append(request.url)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        missing("there is no Chromium: install Debian's chromium, or name one by the variable CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS, slow_mo=PACE.step)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    pytest.importorskip("gradio")
    from causal_tracer import CausalTracer
    from causal_tracer.web.service.registry import LoadedTracer
    from causal_tracer.web.service.settings import ServiceSettings
    from causal_tracer.web.service.tracing import TraceService
    from causal_tracer.web.serving import build_demo, page_options
    from tests.support.chat_templates import PLAIN, with_template
    from tests.support.tiny_models import build_tiny_model, tiny_tokenizer

    let, may_run = threading.Event(), threading.Event()
    may_run.set()

    def wait_for_leave(*_: Any) -> None:
        may_run.wait()

    def load_tiny(source, report):
        report("converting the weights", 0.4)
        let.wait()
        if source == "tiny-chat":
            chat = CausalTracer(build_tiny_model("llama"), with_template(PLAIN), noise=0.5, model_id=source)
            return LoadedTracer(chat, "Tiny Llama", "MIT")
        model = build_tiny_model("gpt2")
        model.register_forward_pre_hook(wait_for_leave)
        tracer = CausalTracer(model, tiny_tokenizer(), noise=0.5, model_id="tiny")
        return LoadedTracer(tracer, "Tiny GPT-2", "MIT")

    service = TraceService(ServiceSettings(models=("tiny", "tiny-chat")), load=load_tiny)
    service.start_loading()
    demo = build_demo(service)
    options = page_options(service)
    if PACE.network:
        from starlette.middleware import Middleware

        options["app_kwargs"]["middleware"].append(Middleware(LateMessages, pace=PACE))
    demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, **options)
    sessions = demo.state_holder

    def forget() -> None:
        # One by one, as Gradio does it: cleared at once, the ordered dictionary breaks where a request comes between.
        with sessions.lock:
            while sessions.session_data:
                sessions.session_data.popitem()

    yield App(demo.local_url, let.set, may_run, forget)
    let.set()
    may_run.set()
    demo.close()


@pytest.fixture(scope="module")
def all_visits(browser: Any, app: App) -> Iterator[Visits]:
    visits = Visits(browser, app.url, {})
    yield visits
    visits.kept.clear()
    _close_pages(visits)


@pytest.fixture
def visits(all_visits: Visits, app: App, request: pytest.FixtureRequest) -> Iterator[Visits]:
    yield all_visits
    # A test that failed while it held the model must not hold up the next ones.
    if isinstance(app, App):
        app.may_run.set()
    if request.node.stash.get(FAILED, False):
        all_visits.kept.clear()
    _close_pages(all_visits)
    strangers, complaints = list(all_visits.strangers), list(all_visits.complaints)
    all_visits.strangers.clear()
    all_visits.complaints.clear()
    assert strangers == []
    assert complaints == []


def _close_pages(visits: Visits) -> None:
    """Close all pages but those that stay for the next tests."""
    staying = [page.context for page in visits.kept.values()]
    for context in visits.browser.contexts:
        if context not in staying:
            context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note that a test failed: its page is not left to the next one."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report
