"""Facts: what a study traces, read from files or data sets, and which of them a model knows."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_tracer.errors import FactsError, PromptError, TokenizerError
from causal_tracer.experiment.set_up import TracingContext, prompt_for
from causal_tracer.model.runs import read_logits
from causal_tracer.prompts.answer_forms import Continuation, LogitsAfter, choose, continuations
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.prompts.subject import occurrences

SHIPPED = "shipped"
"""The name of the facts that come with the package: known to Gemma 3 270M, see `examples/find_known_facts.py`."""

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "subject": ("subject",),
    "attribute": ("attribute", "answer", "target"),
    "relation": ("relation", "relation_id"),
    "fact_id": ("fact_id", "known_id", "case_id", "id"),
}
_CHECK_ROWS = 32


@dataclass(frozen=True)
class Fact:
    """A prompt that a model completes with an attribute of its subject.

    Attributes:
        fact_id: Its name in a study; no two facts of a study have the same.
        prompt: The text, which ends right before the attribute.
        subject: A part of the prompt.
        attribute: What comes next, without the space before it.
        relation: What the attribute is to the subject; facts of one relation are not independent.
    """

    fact_id: str
    prompt: str
    subject: str
    attribute: str
    relation: str


def load_facts(source: str | PathLike[str] = SHIPPED) -> tuple[Fact, ...]:
    """Read facts: the shipped ones, a file, or a data set.

    Files are JSON (a list of records), JSONL, CSV or Parquet, with the columns prompt, subject, attribute and relation;
    ROME's `known_1000.json` is one of them. A prompt may hold {} in place of its subject. Anything else is the id of a
    Hugging Face data set, with the split after a colon: "name/of-it:train".

    Raises:
        FactsError: There is no such source, or its records are incomplete, ambiguous or doubled.
    """
    name = str(source)
    path = Path(source)
    if name == SHIPPED:
        with as_file(files("causal_tracer") / "facts" / "known_facts.json") as shipped:
            return facts_from_records(_read_file(shipped), SHIPPED)
    if path.is_file():
        return facts_from_records(_read_file(path), path.name)
    if path.suffix.lower() in _READERS:
        raise FactsError(f"There is no file {name!r}. Give a path to facts, {SHIPPED!r}, or a data set's id.")
    return facts_from_records(_read_dataset(name), name)


def facts_from_records(records: Iterable[Mapping[str, Any]], name: str = "these records") -> tuple[Fact, ...]:
    """Facts from records such as the rows of a table.

    Raises:
        FactsError: A record lacks a column or its subject, or two records are the same fact.
    """
    facts: list[Fact] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(records):
        fact = _fact(record, f"record {number} of {name}")
        # Without ids of their own, equal facts have equal ids.
        if fact.fact_id in seen:
            raise FactsError(
                f"Records {seen[fact.fact_id]} and {number} of {name} have the same id {fact.fact_id!r} "
                f"({fact.prompt!r}). Leave one of them out."
            )
        seen[fact.fact_id] = number
        facts.append(fact)
    if not facts:
        raise FactsError(f"{name} holds no facts. Give records with prompt, subject, attribute and relation.")
    return tuple(facts)


def facts_digest(facts: Sequence[Fact]) -> str:
    """A hash of the facts, whatever their order: what tells one set from another."""
    lines = sorted(json.dumps(asdict(fact), sort_keys=True, ensure_ascii=False) for fact in facts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def alternating_relations(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """The facts in an order that takes one of each relation in turn, so that the first n cover all relations."""
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_relation[fact.relation].append(fact)
    longest = max(map(len, by_relation.values()), default=0)
    return tuple(
        group[turn] for turn in range(longest) for _, group in sorted(by_relation.items()) if turn < len(group)
    )


@dataclass(frozen=True)
class Recall:
    """What a model says to a fact's prompt.

    Attributes:
        fact: The fact.
        answer_ids: The attribute's tokens, in the form that the model finds more probable (`answer_forms.choose`).
        top_id: The model's most probable next token.
        probability: Probability of `answer_id`.
    """

    fact: Fact
    answer_ids: tuple[int, ...]
    top_id: int
    probability: float

    @property
    def answer_id(self) -> int:
        """First token of the attribute."""
        return self.answer_ids[0]

    @property
    def known(self) -> bool:
        """Whether the model's top answer is the attribute's first token, as in ROME's code."""
        return self.answer_id == self.top_id


def recall(context: TracingContext, facts: Sequence[Fact]) -> tuple[list[Recall], dict[str, str]]:
    """Ask the model for each fact, prompts of equal length together.

    Returns:
        The answers in the facts' order, and for each fact that cannot be asked (by its id) why.
    """
    prompts: dict[str, Prompt] = {}
    forms: dict[str, tuple[Continuation, ...]] = {}
    refused: dict[str, str] = {}
    for fact in facts:
        try:
            prompt = prompt_for(context, fact.prompt, fact.subject)
            forms[fact.fact_id] = continuations(context.tokenizer, prompt, fact.attribute)
            prompts[fact.fact_id] = prompt
        except (PromptError, TokenizerError) as error:
            refused[fact.fact_id] = str(error)
    by_length: dict[int, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.fact_id not in refused:
            by_length[len(prompts[fact.fact_id])].append(fact)
    found: dict[str, Recall] = {}
    for group in by_length.values():
        for start in range(0, len(group), _CHECK_ROWS):
            batch = group[start : start + _CHECK_ROWS]
            rows = torch.tensor([prompts[fact.fact_id].input_ids for fact in batch])
            logits = read_logits(context.traced, rows, {}, "clean").cpu()
            for fact, row in zip(batch, logits, strict=True):
                ids = choose(forms[fact.fact_id], _logits_after(context, prompts[fact.fact_id], row)).ids
                probability = float(row[0].softmax(dim=-1)[ids[0]])
                found[fact.fact_id] = Recall(fact, ids, int(row[0].argmax()), probability)
    return [found[fact.fact_id] for fact in facts if fact.fact_id in found], refused


def _logits_after(context: TracingContext, prompt: Prompt, row: Tensor) -> LogitsAfter:
    """The prompt's logits, which are known [1, vocabulary], and those after more tokens."""

    def logits(forced: tuple[int, ...]) -> Tensor:
        if not forced:
            return row
        ids = prompt.input_ids + forced
        return read_logits(context.traced, torch.tensor([ids]), {}, "clean", range(len(prompt) - 1, len(ids)))[0].cpu()

    return logits


def _fact(record: Mapping[str, Any], where: str) -> Fact:
    def column(name: str, default: str | None = None) -> str:
        for known_as in _COLUMNS[name]:
            value = record.get(known_as)
            if value is not None and str(value).strip():
                return str(value)
        if default is not None:
            return default
        raise FactsError(
            f"{where} has no {' or '.join(_COLUMNS[name])}; it has {', '.join(map(str, record)) or 'nothing'}. Facts "
            "need prompt, subject, attribute and relation."
        )

    subject, attribute = column("subject").strip(), column("attribute").strip()
    prompt = column("prompt").rstrip().replace("{}", subject)
    if not occurrences(prompt, subject):
        raise FactsError(f"{where}: the subject {subject!r} is not in the prompt {prompt!r}. Write it the same way.")
    digest = hashlib.sha256(json.dumps([prompt, subject, attribute]).encode()).hexdigest()[:12]
    return Fact(column("fact_id", digest), prompt, subject, attribute, column("relation", "all"))


def _read_json(path: Path) -> list[Any]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return data if isinstance(data, list) else [data]


def _read_json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_csv(path: Path) -> list[Any]:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet

    rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


_READERS = {".json": _read_json, ".jsonl": _read_json_lines, ".csv": _read_csv, ".parquet": _read_parquet}


def _read_file(path: Path) -> list[Mapping[str, Any]]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise FactsError(f"{path.name!r} ends in {path.suffix!r}. Facts are read from {', '.join(_READERS)}.")
    try:
        records = reader(path)
    except (OSError, ValueError) as error:
        raise FactsError(f"{path.name!r} could not be read as {path.suffix.lower()} ({error}).") from error
    if not all(isinstance(record, Mapping) for record in records):
        raise FactsError(f"{path.name!r} is not a list of records with prompt, subject, attribute and relation.")
    return records


def _read_dataset(name: str) -> list[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise FactsError(
            f"There is no file {name!r}; to look for a data set of that name, pip install datasets. Or give a file "
            f"or {SHIPPED!r}."
        ) from error
    identifier, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(identifier, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise FactsError(
            f"There is no file {name!r}, and no data set of that name could be loaded ({error}). Check the name and "
            "the split (NAME:SPLIT), or give a file."
        ) from error
    return [dict(row) for row in rows]
