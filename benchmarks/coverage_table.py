"""The text of the page `coverage.md`, which `coverage.py` writes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import transformers

from benchmarks import tiny_configs

if TYPE_CHECKING:
    from benchmarks.coverage import Report

_COLUMNS = (
    "type",
    "class",
    "attention",
    "MLP",
    "hidden / both",
    "layers without",
    "engine",
    "resumed − full",
    "full − by hand",
    "least max IE",
    "notes",
)


def row(report: Report) -> str:
    """Return the line of one type in the table."""
    missing = "; ".join(f"{kind} {layers}" for kind, layers in report.missing.items())
    right = f"{_mark(report.hidden_right)} / {_mark(report.all_right)}"
    cells = (
        report.type,
        report.model_class.removesuffix("ForCausalLM"),
        report.attention,
        report.mlp,
        right if not report.refused else "refused",
        missing,
        report.engine,
        _number(report.resumed),
        _number(report.by_hand),
        _number(report.smallest_effect or None),
        "; ".join(_notes(report)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def page(decoders: Sequence[Report], wrappers: Sequence[Report], seconds: float) -> str:
    """Return the whole page in Markdown."""
    head = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"
    slowest = max(report.check_seconds for report in decoders)
    lines = [
        "# Coverage of transformers' architectures",
        "",
        "Written by `OMP_NUM_THREADS=1 python benchmarks/coverage.py`; that file says what is checked, and "
        "`tiny_configs.py` which types count as text decoders.",
        "",
        f"transformers {transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, float32 on the CPU, one thread a type; {seconds:.0f} s in all. The "
        f"engine's own check took at most {slowest:.1f} s a type.",
        "",
        *_totals(decoders, wrappers),
        "",
        "Columns: *hidden / both*: hidden maps right / attention and MLP right too, where the type has them (maps "
        "equal hooks by hand, identities hold, the answer moves; names as in the source code). *engine*: the one "
        "chosen automatically: *resumed* and *resumed, all rows* leave out blocks and tokens, *resumed in depth* "
        "blocks only, *full* nothing. *resumed − full*: largest difference over every cell of every kind with windows"
        " 1, 2 and 3. *full − by hand*: largest difference from plain hooks. *least max IE*: the largest indirect "
        "effect of the kind that has the smallest one.",
        "",
        "## Text decoders",
        "",
        head,
        *(row(report) for report in decoders),
        "",
        "## Multimodal types, traced from token ids alone",
        "",
        head,
        *(row(report) for report in wrappers),
    ]
    return "\n".join(lines) + "\n"


def _totals(decoders: Sequence[Report], wrappers: Sequence[Report]) -> list[str]:
    exact = [report for report in decoders if report.resumed_right]
    unlike = [report for report in decoders if not report.refused and not report.resumed_right]
    right = [report for report in wrappers if report.all_right and report.resumed_right]
    rest = ", ".join(report.type for report in unlike)
    return [
        f"| of {len(decoders)} text decoders | |",
        "|---|---|",
        f"| hidden maps right | {sum(report.hidden_right for report in decoders)} |",
        f"| all kinds that the type has right | {sum(report.all_right for report in decoders)} |",
        f"| resumed in depth and position | {sum(report.shortcuts == 2 for report in exact)} |",
        f"| resumed in depth only | {sum(report.shortcuts == 1 for report in exact)} |",
        f"| full sweep only | {sum(report.shortcuts == 0 for report in exact)} |",
        f"| refused with a clear error | {sum(bool(report.refused) for report in decoders)} |",
        f"| none of these | {len(unlike)}{f' ({rest})' if rest else ''} |",
        "",
        f"Of {len(wrappers)} multimodal types, {len(right)} are right throughout, "
        f"{sum(report.shortcuts == 2 for report in right)} of them resumed in depth and position.",
    ]


def _notes(report: Report) -> list[str]:
    notes = []
    if report.refused:
        notes.append(report.refused)
    if report.error:
        notes.append(f"ERROR {report.error[:160]}")
    if around := tiny_configs.AROUND_THE_STREAM.get(report.type):
        notes.append(f"beside the stream: {around}")
    if report.names_right is False:
        notes.append("NAMES differ from the source code's")
    if report.identities:
        notes.append(f"IDENTITIES {', '.join(report.identities)}")
    if not report.sensitive and not (report.refused or report.error):
        notes.append(f"the answer hardly moves (TE {report.total_effect:.1g})")
    if report.shortcuts < 2 or report.engine == "resumed, all rows":
        notes += [reason[:110] for reason in report.tried]
    return notes


def _mark(right: bool) -> str:
    return "yes" if right else "no"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value < 1e-3 else f"{value:.3f}"
