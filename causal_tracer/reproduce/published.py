"""The published numbers that reproductions are compared with, each with its source. This module has only data.

Meng et al. 2022 is arXiv 2202.05262 (ROME), Geva et al. 2023 is arXiv 2304.14767. Both used GPT-2 XL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from causal_tracer.request.sites import LayerKind

PAPER_MODEL = "openai-community/gpt2-xl"
"""The hub id of the papers' model."""

PAPER_CLASS, PAPER_LAYERS = "GPT2LMHeadModel", 48
"""The class and the number of layers that identify GPT-2 XL: no other GPT-2 has 48 layers."""

PAPER_FACTS = 1209
"""The number of facts in ROME's `known_1000.json`."""

PAPER_FACTS_DIGEST = "19be00b594bf43b068879e32c542d2dc0d41d13885f065fda22d61c161152293"
"""The `study.facts.facts_digest` of that file."""


@dataclass(frozen=True)
class Source:
    """A source of published numbers, with the tolerance for measured ones.

    Attributes:
        name: A short name for tables.
        text: The full reference.
        tolerance: The largest difference that counts as agreement, in the unit of the numbers.
    """

    name: str
    text: str
    tolerance: float


# ROME, Figure 1 e to g ------------------------------------------------------------------------------------------------

FIGURE = Source("Figure 1", "Meng et al. 2022, Figure 1 e-g, read from its vector graphic to within 0.011", 0.011)
REPLICATION = Source(
    "replication",
    "A replication in float32, all of whose values lie within 0.0093 of the figure's: goodfire-ai/causalab, "
    "demos/papers/rome_fig1.md",
    0.0093,
)


@dataclass(frozen=True)
class RunScore:
    """The published P(Seattle) in the clean run, or its mean over the corrupted runs."""

    run: Literal["clean", "corrupted"]
    value: float
    source: Source


@dataclass(frozen=True)
class CellScore:
    """The published P(Seattle) of one cell of a map. `layer` is the centre of the window in maps with windows."""

    kind: LayerKind
    token: int
    layer: int
    value: float
    source: Source


@dataclass(frozen=True)
class AboveHalf:
    """The published set of all layers in which a token's scores are above 0.5."""

    kind: LayerKind
    token: int
    layers: tuple[int, ...]
    source: Source


@dataclass(frozen=True)
class Peak:
    """The published layer of a token's largest score. With `of_map` it is the largest score of the whole map."""

    kind: LayerKind
    token: int
    layer: int
    source: Source
    of_map: bool = False


FIGURE_1_PROMPT, FIGURE_1_SUBJECT, FIGURE_1_ANSWER = "The Space Needle is in downtown", "The Space Needle", " Seattle"
FIGURE_1_TOKENS = ("The", " Space", " Need", "le", " is", " in", " downtown")
FIGURE_1_NOISE = 0.1
"""The default noise level of ROME's code, used for the figure. The paper's text has three standard deviations."""
FIGURE_1_SEED, FIGURE_1_SAMPLES, FIGURE_1_WINDOW = 1, 10, 10

_NEED, _LE, _DOWNTOWN = 2, 3, 6

FIGURE_1: tuple[RunScore | CellScore | AboveHalf | Peak, ...] = (
    RunScore("clean", 0.976, REPLICATION),
    RunScore("corrupted", 0.0296, FIGURE),
    CellScore("hidden", _LE, 15, 0.975, FIGURE),
    CellScore("hidden", _LE, 15, 0.973, REPLICATION),
    AboveHalf("hidden", _LE, tuple(range(10, 34)), REPLICATION),
    CellScore("hidden", _DOWNTOWN, 46, 0.9765, FIGURE),
    AboveHalf("hidden", _DOWNTOWN, tuple(range(31, 48)), REPLICATION),
    CellScore("hidden", _NEED, 3, 0.109, FIGURE),
    CellScore("hidden", _NEED, 3, 0.113, REPLICATION),
    Peak("hidden", _NEED, 3, REPLICATION),
    CellScore("mlp", _LE, 17, 0.8948, FIGURE),
    CellScore("mlp", _LE, 17, 0.895, REPLICATION),
    CellScore("mlp", _LE, 14, 0.876, FIGURE),
    CellScore("mlp", _LE, 14, 0.875, REPLICATION),
    Peak("mlp", _LE, 17, REPLICATION, of_map=True),
    AboveHalf("mlp", _LE, tuple(range(11, 21)), REPLICATION),
    CellScore("mlp", _NEED, 5, 0.092, FIGURE),
    CellScore("mlp", _NEED, 5, 0.094, REPLICATION),
    Peak("mlp", _NEED, 5, REPLICATION),
    CellScore("attention", _DOWNTOWN, 32, 0.7993, FIGURE),
    CellScore("attention", _DOWNTOWN, 32, 0.7995, REPLICATION),
    Peak("attention", _DOWNTOWN, 32, REPLICATION, of_map=True),
    AboveHalf("attention", _DOWNTOWN, (*range(27, 37), 38), REPLICATION),
    CellScore("attention", _DOWNTOWN, 37, 0.383, REPLICATION),
    CellScore("attention", _LE, 10, 0.211, FIGURE),
    CellScore("attention", _LE, 10, 0.212, REPLICATION),
    Peak("attention", _LE, 10, REPLICATION),
)

# ROME, averages over facts --------------------------------------------------------------------------------------------

AVERAGES_SAMPLES = 10


@dataclass(frozen=True)
class Average:
    """A published mean over facts, in per cent.

    Attributes:
        quantity: "ATE"; "clean" or "corrupted", the mean probability in this run; "AIE"; "P", the mean probability in
            the restored runs at one layer; or "P, own best", the same at each fact's own best layer.
        value: The published number.
        source: The source of the number.
        kind: The kind of the map, for the last three quantities.
        role: The token role, for the last three quantities.
        layer: The layer; None takes the layer of the largest AIE.
    """

    quantity: Literal["ATE", "clean", "corrupted", "AIE", "P", "P, own best"]
    value: float
    source: Source
    kind: LayerKind = "hidden"
    role: str = "last subject"
    layer: int | None = None


# The paper rounds to 0.1 points. The rest of the tolerance is for its order and filter of facts.
_SECTION_2 = Source("section 2.2", "Meng et al. 2022, section 2.2", 0.5)
_APPENDIX_B1 = Source("appendix B.1", "Meng et al. 2022, appendix B.1", 0.5)
_APPENDIX_B2 = Source("appendix B.2", "Meng et al. 2022, appendix B.2", 0.5)

AVERAGES: tuple[Average, ...] = (
    Average("ATE", 18.6, _SECTION_2),
    Average("clean", 27.0, _APPENDIX_B1),
    Average("corrupted", 8.47, _APPENDIX_B1),
    Average("AIE", 8.7, _SECTION_2, "hidden", layer=15),
    Average("AIE", 6.6, _SECTION_2, "mlp"),
    Average("AIE", 1.6, _SECTION_2, "attention"),
    Average("P, own best", 19.5, _APPENDIX_B1, "hidden"),
    Average("P", 15.0, _APPENDIX_B2, "mlp", layer=17),
    Average("P", 16.5, _APPENDIX_B2, "attention", "last", layer=32),
)

# Geva et al., attention knockout --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A published order of two spans: the curve of `first` has its lowest point at an earlier layer than `second`."""

    first: str
    second: str
    source: Source


RECALL: tuple[Order, ...] = (
    Order(
        "other tokens",
        "subject",
        Source("abstract", "Geva et al. 2023, abstract: first the relation's positions, then the subject's", 0.0),
    ),
)
"""The order that the paper states in words. It shows its curves without a table, so no numbers can be compared."""
