"""Select the facts of the package: those of `fact_candidates.json` that a model knows.

    python examples/find_known_facts.py [--model embedded] [--write]

Each candidate (relation, subject, attribute) is put into several templates. The model knows it if the attribute's first
token is the most probable next token, with a probability of 0.1 or more, and if greedy decoding gives the whole
attribute. At most twelve facts of a relation are kept: the most probable ones, one of each attribute in turn. A subject
is kept once in a relation. Subjects that contain the attribute are left out. With --write the script writes
`causal_tracer/facts/known_facts.json`; without it, the script checks the existing file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from causal_tracer import CausalTracer
from causal_tracer.experiment.set_up import prompt_for
from causal_tracer.prompts.decoding import decode_together
from causal_tracer.study.facts import Fact, FactPrediction, facts_from_records, load_facts, predict_facts

ROOT = Path(__file__).resolve().parent.parent
CANDIDATES = ROOT / "examples" / "fact_candidates.json"
SHIPPED_FILE = ROOT / "causal_tracer" / "facts" / "known_facts.json"
LEAST_OF_A_RELATION, MOST_OF_A_RELATION = 8, 12
LEAST_PROBABILITY = 0.1


def candidates() -> tuple[Fact, ...]:
    """Return every candidate in every template. A subject at the start of a prompt gets a capital letter."""
    records = []
    for relation, group in json.loads(CANDIDATES.read_text(encoding="utf-8")).items():
        for attribute, subjects in group["pairs"].items():
            for subject in subjects:
                if attribute.lower() in subject.lower():
                    continue
                for template in group["templates"]:
                    name = subject[0].upper() + subject[1:] if template.startswith("{}") else subject
                    records.append(
                        {
                            "prompt": template.replace("{}", name),
                            "subject": name,
                            "attribute": attribute,
                            "relation": relation,
                        }
                    )
    return facts_from_records(records, CANDIDATES.name)


@torch.no_grad()
def spelled_out(tracer: CausalTracer, found: FactPrediction) -> bool:
    """Return whether greedy decoding continues the prompt with the whole attribute."""
    model: Any = tracer.model
    prompt = prompt_for(tracer.context, found.fact.prompt, found.fact.subject)
    ids = torch.tensor([prompt.input_ids])
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(found.answer_ids), do_sample=False
    )[0, len(prompt) :]
    return decode_together(tracer.tokenizer, said.tolist()).strip().startswith(found.fact.attribute)


def best_known(tracer: CausalTracer, asked: Sequence[Fact]) -> list[Fact]:
    """Return at most twelve known facts of each relation, one of each attribute in turn, the most probable first."""
    answers, refused = predict_facts(tracer.context, asked)
    for reason in refused.values():
        print(f"left out: {reason}", file=sys.stderr)
    waiting: dict[str, dict[str, list[FactPrediction]]] = {}
    for answer in sorted(answers, key=lambda found: -found.probability):
        if answer.known and answer.probability >= LEAST_PROBABILITY:
            fact = answer.fact
            waiting.setdefault(fact.relation, {}).setdefault(fact.attribute, []).append(answer)
    kept: list[Fact] = []
    for by_attribute in waiting.values():
        chosen: dict[str, Fact] = {}
        while len(chosen) < MOST_OF_A_RELATION and any(by_attribute.values()):
            for queue in by_attribute.values():
                fact = next_fact(tracer, queue, set(chosen))
                if fact is not None and len(chosen) < MOST_OF_A_RELATION:
                    chosen[fact.subject.lower()] = fact
        if len(chosen) >= LEAST_OF_A_RELATION:
            kept += chosen.values()
    return sorted(kept, key=lambda fact: (fact.relation, fact.attribute, fact.subject))


def next_fact(tracer: CausalTracer, queue: list[FactPrediction], taken: set[str]) -> Fact | None:
    """Take facts off an attribute's queue, and return the first one with a new subject that the model spells out."""
    while queue:
        found = queue.pop(0)
        if found.fact.subject.lower() not in taken and spelled_out(tracer, found):
            return found.fact
    return None


def tally(tracer: CausalTracer, facts: list[Fact]) -> str:
    """Return a summary of the facts: numbers of relations, long subjects, openings and subjects."""
    lengths = [len(tracer.tokenizer(f" {fact.subject}", add_special_tokens=False)["input_ids"]) for fact in facts]
    relations = Counter(fact.relation for fact in facts)
    opening = sum(fact.prompt.startswith(fact.subject) for fact in facts)
    return (
        f"{len(facts)} facts, {len(relations)} relations ({dict(relations)}), "
        f"{sum(length >= 3 for length in lengths)} subjects of three tokens or more, {opening} prompts that open with "
        f"their subject, {len({fact.subject.lower() for fact in facts})} different subjects"
    )


def main() -> int:
    """Write the known facts, or check the existing file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    tracer = CausalTracer.from_pretrained(arguments.model)
    if arguments.write:
        facts = best_known(tracer, candidates())
        records = [
            {"prompt": f.prompt, "subject": f.subject, "attribute": f.attribute, "relation": f.relation} for f in facts
        ]
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        SHIPPED_FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    facts = list(load_facts())
    answers, refused = predict_facts(tracer.context, facts)
    unknown = [found.fact for found in answers if not (found.known and spelled_out(tracer, found))]
    print(tally(tracer, facts))
    for fact in unknown:
        print(f"not known: {fact.prompt!r} -> {fact.attribute!r}")
    return 1 if unknown or refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
