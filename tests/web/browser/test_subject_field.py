"""Whose subject it is: what the page, an example, a link or a guess has set follows the prompt; what is typed stays.

The tests of this file run in their order: the first ones need the model to be still loading.
"""

from __future__ import annotations

import json

import pytest

from causal_tracer.web.page.assets import static_text
from tests.support.tiny_models import OTHER_PROMPT, OTHER_SUBJECT
from tests.web.browser.steps import (
    choose,
    done,
    expect,
    expect_marked_rows,
    expect_subject_tokens,
    field,
    fill,
    run,
    type_over,
)

pytestmark = pytest.mark.browser

NOT_THERE = "'The Space Needle' is not in the prompt"


def note(page):
    return page.locator("#ct-subject-note")


def expect_guess(page, subject: str) -> None:
    """The field is empty, and the guess is named below it."""
    expect(field(page, "subject")).to_have_value("")
    expect(note(page)).to_have_text(f"Guessed: {subject}")
    expect(page.locator("#ct-message .ct-error")).to_have_count(0)


def expect_refused(page, words: str) -> None:
    """Run is refused at once, and the reason stands beside the subject and beside Run."""
    expect(note(page).get_by_role("alert")).to_contain_text(words)
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Nothing was computed")
    expect(page.locator("#ct-status-hidden")).to_contain_text(words)
    expect(page.locator("#ct-run-hidden")).to_be_enabled()


# While the model loads ----------------------------------------------------------------------------------------------


def test_a_typed_subject_is_refused_while_the_model_loads(visits):
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Loading tiny")
    type_over(page, "subject", "The Space Needle")
    type_over(page, "prompt", OTHER_PROMPT)
    expect(field(page, "subject")).to_have_value("The Space Needle")
    expect_refused(page, NOT_THERE)


def test_a_prompt_typed_over_the_page_s_own_is_traced_while_the_model_loads(visits, app):
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Loading tiny")
    expect_guess(page, "The Space Needle")
    type_over(page, "prompt", OTHER_PROMPT)
    expect_guess(page, OTHER_SUBJECT)
    run(page, "hidden")
    expect(page.locator("#ct-status-hidden")).to_contain_text("Waiting for tiny")
    app.let_load()
    expect(page.locator("#ct-status-hidden")).to_contain_text("Done")
    expect_marked_rows(page, "ct-map-hidden", ["Steve*", "Jobs*"])


# Once it is there ---------------------------------------------------------------------------------------------------


def test_a_prompt_typed_over_the_page_s_own_is_traced(visits, app):
    app.let_load()
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    type_over(page, "prompt", OTHER_PROMPT)
    expect_guess(page, OTHER_SUBJECT)
    expect_subject_tokens(page, ["Steve", "Jobs"])
    done(page, "hidden")
    expect_marked_rows(page, "ct-map-hidden", ["Steve*", "Jobs*"])


def test_a_prompt_typed_over_an_example_is_traced(visits, app):
    app.let_load()
    page = visits.stay()
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    # A subject typed for another prompt does not stay for an example.
    type_over(page, "subject", "The Space")
    page.get_by_role("button", name="Taj Mahal").click()
    expect(field(page, "prompt")).to_have_value("The Taj Mahal is located in the city of")
    expect_guess(page, "The Taj Mahal")
    type_over(page, "prompt", OTHER_PROMPT)
    expect_guess(page, OTHER_SUBJECT)
    done(page, "hidden")
    expect_marked_rows(page, "ct-map-hidden", ["Steve*", "Jobs*"])


def test_a_prompt_typed_over_a_link_s_is_traced(visits, app):
    app.let_load()
    page = visits.open("?prompt=The+Space+Needle+is+in&subject=Needle")
    expect(field(page, "subject")).to_have_value("Needle")
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    expect_subject_tokens(page, ["Needle"])
    type_over(page, "prompt", OTHER_PROMPT)
    expect_guess(page, OTHER_SUBJECT)
    done(page, "hidden")
    expect_marked_rows(page, "ct-map-hidden", ["Steve*", "Jobs*"])


def test_a_typed_subject_stays_and_is_refused_until_it_is_emptied(visits, app):
    app.let_load()
    page = visits.open()
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    type_over(page, "subject", "The Space Needle")
    field(page, "prompt").press("End")
    page.keyboard.type(" Rome")
    expect(page.locator("#ct-chips")).to_contain_text("The subject is marked")
    expect(page.locator("#ct-chips [data-token]").last).to_have_text("Rome")
    type_over(page, "prompt", OTHER_PROMPT)
    expect(field(page, "subject")).to_have_value("The Space Needle")
    expect_refused(page, NOT_THERE)
    # Emptied, it is guessed again, now and for the next prompt.
    field(page, "subject").click()
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    expect_guess(page, OTHER_SUBJECT)
    type_over(page, "prompt", "The Colosseum is in")
    expect_guess(page, "The Colosseum")
    done(page, "hidden")
    expect(page.locator("#ct-details-hidden")).to_contain_text("“The Colosseum” (guessed)")


def test_a_clicked_subject_stays_while_the_prompt_has_it(visits, app):
    app.let_load()
    page = visits.stay()
    fill(page, OTHER_PROMPT)
    expect_guess(page, OTHER_SUBJECT)
    expect_subject_tokens(page, ["Steve", "Jobs"])
    page.locator("#ct-chips [data-token]").get_by_text("founder", exact=True).click()
    expect(field(page, "subject")).to_have_value("founder")
    field(page, "prompt").press("End")
    page.keyboard.type(" Rome")
    expect(page.locator("#ct-chips [data-token]").last).to_have_text("Rome")
    expect(field(page, "subject")).to_have_value("founder")
    type_over(page, "prompt", "The Colosseum is in")
    expect_guess(page, "The Colosseum")


def test_where_no_subject_can_be_guessed_the_page_says_so(visits, app):
    app.let_load()
    page = visits.stay()
    expect(page.locator("#ct-model")).to_contain_text("Model ready")
    type_over(page, "prompt", "the city of")
    expect(field(page, "subject")).to_have_value("")
    expect_refused(page, "No subject could be guessed")
    type_over(page, "subject", "city")
    expect(note(page).get_by_role("alert")).to_have_count(0)
    done(page, "hidden")


def test_the_subject_of_a_chat_message_follows_it_too(visits, app):
    app.let_load()
    page = visits.open()
    choose(page, "model-choice", "tiny-chat")
    expect(page.locator("#ct-model")).to_contain_text("Model ready: Tiny Llama")
    box = page.get_by_label("Chat message")
    box.check()
    type_over(page, "prompt", OTHER_PROMPT)
    expect_guess(page, OTHER_SUBJECT)
    done(page, "hidden")
    expect_marked_rows(page, "ct-map-hidden", ["Steve*", "Jobs*"])
    type_over(page, "subject", "The Space Needle")
    expect_refused(page, "'The Space Needle' is in no message")
    box.uncheck()
    expect_refused(page, NOT_THERE)


# The rule by itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "now", "kept"),
    [
        # Nothing was said of the subject: it is new, and belongs to the prompt that it came with.
        ({}, ("Paris is in", "Paris", ""), ("Paris", "")),
        ({}, ("Paris is in", "", ""), ("", "")),
        # The page's own goes with its prompt, even if the next one has it as well.
        ({"subject": "Paris", "subjectPrompt": "Paris is in"}, ("Paris is in", "Paris", ""), ("Paris", "")),
        ({"subject": "Paris", "subjectPrompt": "Paris is in"}, ("Parisians live in", "Paris", ""), ("", "")),
        ({"subject": "Paris", "subjectPrompt": "Paris is in"}, ("Rome is in", "Paris", ""), ("", "")),
        # A link brings both, in whichever order the page hears of them.
        ({"subject": "", "subjectPrompt": "Paris is in"}, ("Rome is in", "Rome", ""), ("Rome", "")),
        # A typed one stays, also where it is wrong.
        ({"subject": "Paris", "subjectPrompt": "x", "typed": "Paris"}, ("Rome is in", "Paris", ""), ("Paris", "")),
        ({"subject": "Paris", "subjectPrompt": "x", "typed": "Pari"}, ("Rome is in", "Paris", ""), ("", "")),
        # A clicked one stays while the prompt has it.
        ({"subject": "Paris", "subjectPrompt": "x", "clicked": "Paris"}, ("In Paris", "Paris", ""), ("Paris", "")),
        ({"subject": "Paris", "subjectPrompt": "x", "clicked": "Paris"}, ("In Rome", "Paris", ""), ("", "")),
        # A typed answer stays, a clicked one goes with its prompt.
        ({}, ("Paris is in", "", "France"), ("", "France")),
        ({"answer": "France", "answerPrompt": "Paris is in"}, ("Paris is in", "", "France"), ("", "France")),
        ({"answer": "France", "answerPrompt": "Paris is in"}, ("Rome is in", "", "France"), ("", "")),
    ],
    ids=str,
)
def test_what_stays_when_the_prompt_changes(browser, page, now, kept):
    blank = browser.new_page()
    script = f"""() => {{
      window.causalTracer = {json.dumps(page)};
      const [prompt, subject, answer] = {json.dumps(now)};
      const [nextSubject, nextAnswer] = ({static_text("fields_changed.js")})(prompt, subject, answer);
      const value = (next, before) => typeof next === 'string' ? next : before;
      return [value(nextSubject, subject), value(nextAnswer, answer)];
    }}"""
    assert tuple(blank.evaluate(script)) == kept
    blank.close()
