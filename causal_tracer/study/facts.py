"""Facts to trace: reading them from files or data sets, and finding which ones a model knows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
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
from causal_tracer.prompts.answer_forms import Continuation, LogitsAfter, choose_form, continuations
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.prompts.subject import occurrences
from causal_tracer.request.records import TraceRequest

SHIPPED = "shipped"
"""The name of the facts in the package. Gemma 3 270M knows all of them, see `examples/find_known_facts.py`."""

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "subject": ("subject",),
    "attribute": ("attribute", "answer", "target"),
    "relation": ("relation", "relation_id"),
    "fact_id": ("fact_id", "known_id", "case_id", "id"),
}
_NEEDED = "prompt, subject, attribute and relation"
_CHECK_ROWS = 32
_PLAIN = TraceRequest("")


@dataclass(frozen=True)
class Fact:
    """A prompt that a model completes with an attribute of its subject.

    Attributes:
        fact_id: The fact's id, unique in a study.
        prompt: The text, which ends right before the attribute.
        subject: The subject, which is a part of the prompt.
        attribute: The text that follows the prompt, without the space before it.
        relation: The relation of subject and attribute. Facts of one relation are not independent.
    """

    fact_id: str
    prompt: str
    subject: str
    attribute: str
    relation: str


def load_facts(source: str | PathLike[str] = SHIPPED) -> tuple[Fact, ...]:
    """Read facts from the package, a file, or a data set of the Hugging Face hub.

    The columns are prompt, subject, attribute and relation. A prompt can have {} in place of its subject. ROME's
    `known_1000.json` can be read as it is.

    Args:
        source: `SHIPPED`; a file in JSON (a list of records), JSONL, CSV or Parquet; or a data set's id, with its split
            after a colon ("owner/name:train").

    Raises:
        FactsError: The source does not exist, or its records are incomplete or repeated.
    """
    name = str(source)
    path = Path(source)
    if name == SHIPPED:
        with as_file(files("causal_tracer") / "facts" / "known_facts.json") as shipped:
            return facts_from_records(_read_file(shipped), name)
    if path.is_file():
        return facts_from_records(_read_file(path), path.name)
    if path.suffix.lower() in _READERS:
        raise FactsError(f"There is no file {name!r}. Give a file with facts, {SHIPPED!r}, or a data set's id.")
    return facts_from_records(_read_dataset(name), name)


def facts_from_records(records: Iterable[Mapping[str, Any]], name: str = "these records") -> tuple[Fact, ...]:
    """Return facts from records, such as the rows of a table.

    Args:
        records: The records, as mappings from column to value.
        name: The name of their source, for messages.

    Raises:
        FactsError: A record lacks a column, its prompt lacks the subject, or two records have the same id.
    """
    facts: dict[str, Fact] = {}
    for number, record in enumerate(records):
        fact = _fact(record, f"record {number} of {name}")
        # Records without an id get a hash of their content, so repeated facts have the same id.
        if fact.fact_id in facts:
            raise FactsError(
                f"Records {list(facts).index(fact.fact_id)} and {number} of {name} have the same id {fact.fact_id!r} "
                f"({fact.prompt!r}). Leave one of them out."
            )
        facts[fact.fact_id] = fact
    if not facts:
        raise FactsError(f"{name} has no facts. Give records with {_NEEDED}.")
    return tuple(facts.values())


def facts_digest(facts: Sequence[Fact]) -> str:
    """Return a hash of a set of facts that does not depend on their order."""
    lines = sorted(json.dumps(asdict(fact), sort_keys=True, ensure_ascii=False) for fact in facts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def alternating_relations(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Return the facts ordered to take one of each relation in turn, so that the first n cover many relations."""
    earlier: Counter[str] = Counter()
    turns = []
    for fact in facts:
        turns.append((earlier[fact.relation], fact.relation))
        earlier[fact.relation] += 1
    return tuple(fact for _, fact in sorted(zip(turns, facts, strict=True), key=lambda pair: pair[0]))


@dataclass(frozen=True)
class FactPrediction:
    """A model's answer to a fact's prompt.

    Attributes:
        fact: The fact.
        answer_ids: The attribute's token ids, in its more probable form (`answer_forms.choose_form`).
        top_id: The model's most probable next token.
        probability: The probability of `answer_id`.
    """

    fact: Fact
    answer_ids: tuple[int, ...]
    top_id: int
    probability: float

    @property
    def answer_id(self) -> int:
        """The first token of the attribute."""
        return self.answer_ids[0]

    @property
    def known(self) -> bool:
        """Whether the model's most probable next token is the attribute's first token, as in ROME's code."""
        return self.answer_id == self.top_id


def predict_facts(
    context: TracingContext, facts: Sequence[Fact], request: TraceRequest = _PLAIN
) -> tuple[list[FactPrediction], dict[str, str]]:
    """Run the model on each fact's prompt, with prompts of equal length in one batch.

    Args:
        context: The model.
        facts: The facts.
        request: The request whose `occurrence` and `answer_form` say how subject and answer become tokens.

    Returns:
        The answers in the facts' order, and the reason for each fact that cannot be run, by its id.
    """
    by_length: dict[int, list[tuple[Fact, Prompt, tuple[Continuation, ...]]]] = defaultdict(list)
    refused: dict[str, str] = {}
    for fact in facts:
        try:
            prompt = prompt_for(context, fact.prompt, fact.subject, request.occurrence)
            forms = continuations(context.tokenizer, prompt, fact.attribute, request.answer_form)
            by_length[len(prompt)].append((fact, prompt, forms))
        except (PromptError, TokenizerError) as error:
            refused[fact.fact_id] = str(error)
    found: dict[str, FactPrediction] = {}
    for group in by_length.values():
        for start in range(0, len(group), _CHECK_ROWS):
            batch = group[start : start + _CHECK_ROWS]
            rows = torch.tensor([prompt.input_ids for _, prompt, _ in batch])
            logits = read_logits(context.traced, rows, {}, "clean").cpu()
            for (fact, prompt, forms), row in zip(batch, logits, strict=True):
                ids = choose_form(forms, _logits_after(context, prompt, row)).ids
                probability = float(row[0].softmax(dim=-1)[ids[0]])
                found[fact.fact_id] = FactPrediction(fact, ids, int(row[0].argmax()), probability)
    return [found[fact.fact_id] for fact in facts if fact.fact_id in found], refused


def _logits_after(context: TracingContext, prompt: Prompt, row: Tensor) -> LogitsAfter:
    """Return a function that gives the logits after the prompt and some forced tokens.

    Without forced tokens it returns `row`, the known logits [1, vocabulary].
    """

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
            f"{where} has no {' or '.join(_COLUMNS[name])}. Its columns: {', '.join(map(str, record)) or 'none'}. "
            f"Give {_NEEDED}."
        )

    subject, attribute = column("subject").strip(), column("attribute").strip()
    prompt = column("prompt").rstrip().replace("{}", subject)
    if not occurrences(prompt, subject):
        raise FactsError(
            f"{where}: the subject {subject!r} is not in the prompt {prompt!r}. Write the subject as in the prompt."
        )
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
        raise FactsError(f"A file with facts must end in {', '.join(_READERS)} (given: {path.name!r}).")
    try:
        records = reader(path)
    except (OSError, ValueError) as error:
        raise FactsError(f"{path.name!r} could not be read as {path.suffix.lower()} ({error}).") from error
    if not all(isinstance(record, Mapping) for record in records):
        raise FactsError(f"{path.name!r} is not a list of records with {_NEEDED}.")
    return records


def _read_dataset(name: str) -> list[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise FactsError(
            f"There is no file {name!r}, and reading a data set needs datasets, which is not installed: pip install "
            f"datasets. Or give a file, or {SHIPPED!r}."
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
