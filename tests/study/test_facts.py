"""Facts: reading them from every kind of file, the shipped ones, and which of them a model knows."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from causal_tracer.errors import FactsError
from causal_tracer.study.facts import alternating_relations, facts_digest, facts_from_records, load_facts, predict_facts
from tests.support.study_model import known_facts, tracer

RECORDS = [
    {"prompt": "The Louvre is in", "subject": "The Louvre", "attribute": "Paris", "relation": "city"},
    {"prompt": "In {}, people speak", "subject": "Perú", "attribute": "Spanish", "relation": "language"},
]
PAIRS = [("The Louvre is in", "Paris"), ("In Perú, people speak", "Spanish")]


def write(path, records):
    if path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(records), path)


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_facts(tmp_path, ending):
    path = tmp_path / f"facts.{ending}"
    write(path, RECORDS)
    facts = load_facts(path)
    assert [(fact.prompt, fact.attribute) for fact in facts] == PAIRS
    assert facts == facts_from_records(RECORDS)
    assert len({fact.fact_id for fact in facts}) == 2


def test_records_as_romes_file_has_them_load_as_they_are():
    record = {
        "known_id": 7,
        "subject": "The Louvre",
        "attribute": "Paris",
        "template": "{} is in",
        "prediction": " Paris, near the river",
        "prompt": "The Louvre is in",
        "relation_id": "P131",
    }
    (fact,) = facts_from_records([record])
    assert (fact.fact_id, fact.relation, fact.prompt, fact.attribute) == ("7", "P131", "The Louvre is in", "Paris")


def test_a_data_set_is_loaded_by_its_id_and_split(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return RECORDS

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert [(fact.prompt, fact.attribute) for fact in load_facts("someone/facts:test")] == PAIRS
    load_facts("someone/facts")
    assert asked == [("someone/facts", "test"), ("someone/facts", "train")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"subject": ""}, "has no subject"),
        ({"attribute": None}, "has no attribute"),
        ({"subject": "the louvre"}, "not in the prompt"),
    ],
)
def test_a_record_that_is_no_fact_is_refused_with_its_number(change, said):
    with pytest.raises(FactsError, match=said) as caught:
        facts_from_records([RECORDS[1], {**RECORDS[0], **change}], "mine.csv")
    assert "record 1 of mine.csv" in str(caught.value)


def test_the_same_fact_twice_is_refused():
    with pytest.raises(FactsError, match="Records 0 and 2"):
        facts_from_records([*RECORDS, RECORDS[0]])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("facts.json", "{", "could not be read"), ("facts.txt", "x", "end in"), ("facts.json", "[1]", "list of records")],
)
def test_a_file_that_holds_no_facts_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FactsError, match=said):
        load_facts(path)


def test_a_file_that_is_not_there_is_not_looked_for_among_data_sets(tmp_path):
    with pytest.raises(FactsError, match="no file"):
        load_facts(tmp_path / "none.json")


def test_the_digest_tells_sets_apart_but_not_orders():
    facts = facts_from_records(RECORDS)
    assert facts_digest(facts) == facts_digest(facts[::-1])
    assert facts_digest(facts) != facts_digest(facts[:1])


def test_the_first_facts_cover_all_relations():
    facts = known_facts()
    assert {fact.relation for fact in alternating_relations(facts)[:3]} == {fact.relation for fact in facts}
    assert sorted(alternating_relations(facts), key=str) == sorted(facts, key=str)


def test_known_means_that_the_top_token_is_the_first_of_the_attribute_in_its_more_probable_form():
    import torch

    model, tokenizer = tracer().model, tracer().tokenizer

    def forms(fact):
        """The attribute's tokens, as it is written and with a space before it, each with its log-probability."""
        length = len(tokenizer(fact.prompt)["input_ids"])
        for attribute in (fact.attribute, f" {fact.attribute}"):
            ids = tokenizer(fact.prompt + attribute)["input_ids"]
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
            yield sum(float(logs[place - 1, ids[place]]) for place in range(length, len(ids))), ids[length:]

    answers, refused = predict_facts(tracer().context, known_facts())
    assert not refused
    assert {found.known for found in answers} == {True, False}
    for found in answers:
        ids = torch.tensor([tokenizer(found.fact.prompt)["input_ids"]])
        with torch.no_grad():
            probabilities = model(ids).logits[0, -1].softmax(dim=-1)
        assert found.answer_ids == tuple(max(forms(found.fact))[1])
        first = found.answer_ids[0]
        assert found.known == (first == found.top_id)
        assert found.top_id == int(probabilities.argmax())
        assert found.probability == pytest.approx(float(probabilities[first]), abs=1e-6)


@pytest.fixture(scope="module")
def shipped():
    return load_facts()


class TestShipped:
    """The shipped facts are complete and balanced; `test_study_real.py` shows that the embedded model knows them."""

    def test_it_is_large_and_broad_enough(self, shipped):
        relations = Counter(fact.relation for fact in shipped)
        assert len(shipped) >= 150
        assert len(relations) >= 10
        assert min(relations.values()) >= 8

    def test_no_prompt_or_pair_of_subject_and_relation_is_there_twice(self, shipped):
        assert len({fact.prompt.lower() for fact in shipped}) == len(shipped)
        assert len({(fact.subject.lower(), fact.relation) for fact in shipped}) == len(shipped)

    def test_no_prompt_gives_its_attribute_away(self, shipped):
        assert not [fact for fact in shipped if fact.attribute.lower() in fact.prompt.lower()]

    def test_subjects_stand_at_the_start_of_some_prompts_and_inside_others(self, shipped):
        opening = sum(fact.prompt.startswith(fact.subject) for fact in shipped)
        assert 0.2 < opening / len(shipped) < 0.8
        assert all(fact.prompt.count(fact.subject) == 1 for fact in shipped)
