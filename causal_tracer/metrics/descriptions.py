"""What each metric is called, which of its values are better, and how they are written.

Figures, tables, summaries and reports read these records. They need neither torch nor a model, so that a saved result
opens anywhere with its labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from causal_tracer.errors import SettingsError

_MOST_DECIMALS = 10


@dataclass(frozen=True)
class MetricDescription:
    """One metric as figures and reports present it.

    Attributes:
        name: The name that `settings.metric` holds.
        label: What its value is; "{answer}" and "{foil}" stand for the texts of those tokens.
        higher_is_better: Whether a larger value is better; None takes it from the clean and the corrupted run.
        lowest: The smallest possible value; None where there is none.
        highest: The largest possible value; None where there is none.
        decimals: Decimals that are written; None writes four significant digits.
        logarithmic: Draw the value's logarithm: for positive values over several orders of magnitude.
        restored: What a restored run regains, in sentences: "the answer".
        doubtful_beyond: A clean run that is worse than this does not give the answer; None sets no limit.
        readable_effect: A total effect below this is too small to read a map from.
    """

    name: str
    label: str
    higher_is_better: bool | None = None
    lowest: float | None = None
    highest: float | None = None
    decimals: int | None = None
    logarithmic: bool = False
    restored: str = "the clean run's value"
    doubtful_beyond: float | None = None
    readable_effect: float = 0.0

    def __post_init__(self) -> None:
        texts, numbers = (self.name, self.label, self.restored), (self.lowest, self.highest, self.doubtful_beyond)
        fits = (
            all(isinstance(text, str) for text in texts)
            and (self.higher_is_better is None or isinstance(self.higher_is_better, bool))
            and all(number is None or isinstance(number, int | float) for number in (*numbers, self.readable_effect))
            and isinstance(self.logarithmic, bool)
            and (self.decimals is None or (isinstance(self.decimals, int) and 0 <= self.decimals <= _MOST_DECIMALS))
        )
        if not fits:
            raise SettingsError(
                f"This does not describe a metric: {self}. Give texts, numbers, and 0 to {_MOST_DECIMALS} decimals."
            )

    def labelled(self, answer: str, foil: str | None = None) -> str:
        """Return the label with the answer's and the foil's texts filled in."""
        parts = self.label.split("{answer}")
        # Answer and foil are texts of tokens: what is put in is not searched again.
        return answer.join(part.replace("{foil}", foil if foil is not None else "foil") for part in parts)

    def written(self, value: float, *, sign: bool = False, more: int = 0, fixed: bool = True) -> str:
        """Return a value as text.

        Args:
            value: The value, or a difference of values.
            sign: Write the sign of positive values too, as differences have it.
            more: Decimals, or significant digits, beyond the usual ones.
            fixed: Write the metric's decimals, as columns of a table have it; else four significant digits.
        """
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "−∞" if value < 0 else "+∞" if sign else "∞"
        plus = "+" if sign else ""
        if self.decimals is None or not fixed:
            return f"{value:{plus}.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:{plus}.{4 + more}g}"
        text = f"{value:{plus}.{self.decimals + more}f}"
        # No sign where what is left of the value is nothing.
        return text.lstrip("+-") if not text.strip("+-0.") else text

    def place(self, value: float) -> float:
        """Return where a value lies on an axis or a colour scale: itself, or its logarithm to base 10."""
        if not self.logarithmic or math.isnan(value) or value == math.inf:
            return value
        return math.log10(value) if value > 0 else -math.inf

    def value_at(self, place: float) -> float:
        """Return the value at a place."""
        return float(10.0**place) if self.logarithmic else place

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MetricDescription:
        """Return the record that `to_dict` described.

        Raises:
            TypeError, SettingsError: The data describe no metric.
        """
        return cls(**data)


METRIC_DESCRIPTIONS: Mapping[str, MetricDescription] = {
    each.name: each
    for each in (
        MetricDescription(
            "probability",
            "P({answer})",
            higher_is_better=True,
            lowest=0,
            highest=1,
            decimals=3,
            restored="the answer",
            doubtful_beyond=0.1,
            readable_effect=0.05,
        ),
        MetricDescription(
            "log-probability",
            "log P({answer})",
            higher_is_better=True,
            highest=0,
            decimals=3,
            restored="the answer",
            doubtful_beyond=math.log(0.1),
        ),
        MetricDescription(
            "logit", "logit of {answer}", higher_is_better=True, decimals=3, restored="the answer's logit"
        ),
        MetricDescription(
            "logit difference",
            "logit of {answer} − logit of {foil}",
            higher_is_better=True,
            decimals=3,
            restored="the answer's lead over the foil",
            doubtful_beyond=0,
        ),
        MetricDescription(
            "rank",
            "rank of {answer}",
            higher_is_better=False,
            lowest=1,
            logarithmic=True,
            restored="the answer's rank",
            doubtful_beyond=1,
            readable_effect=1,
        ),
        MetricDescription(
            "KL from clean",
            "KL from the clean run (nats)",
            higher_is_better=False,
            lowest=0,
            decimals=3,
            restored="the clean run's prediction",
        ),
    )
}
"""The built-in metrics by name."""
