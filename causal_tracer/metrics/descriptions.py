"""Descriptions of the metrics: label, bounds, which values are better, and how values are formatted.

Figures, tables, summaries and reports use these records. They need neither torch nor a model, so a saved result opens
anywhere with its labels.
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
    """The name, label and number format of a metric in figures and reports.

    Attributes:
        name: The metric's name in `settings.metric`.
        label: The label of its values, where "{answer}" and "{foil}" stand for the texts of those tokens.
        higher_is_better: Whether a larger value is better. None decides by the clean and the corrupted run.
        lowest: The smallest possible value; None if there is none.
        highest: The largest possible value; None if there is none.
        decimals: Number of decimals in texts; None writes four significant digits.
        logarithmic: Whether to draw the logarithm, for positive values over several orders of magnitude.
        restored: What a restored run recovers, as part of a sentence: "the answer".
        doubtful_beyond: If the clean run is worse than this, the model does not give the answer. None sets no limit.
        readable_effect: A map whose total effect is smaller than this cannot be interpreted.
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
                f"{self} is not valid. Name, label and restored must be texts, bounds must be numbers, and decimals "
                f"must be an integer from 0 to {_MOST_DECIMALS}."
            )

    def labelled(self, answer: str, foil: str | None = None) -> str:
        """Return the label with the answer's and the foil's texts filled in."""
        parts = self.label.split("{answer}")
        # The inserted texts may themselves hold "{foil}" or "{answer}", so they are not searched again.
        return answer.join(part.replace("{foil}", foil if foil is not None else "foil") for part in parts)

    def format_value(self, value: float, *, sign: bool = False, more: int = 0, fixed: bool = True) -> str:
        """Return a value as text.

        Args:
            value: A value, or a difference of values.
            sign: Whether positive values get a plus sign, as for differences.
            more: Number of additional decimals or significant digits.
            fixed: Whether to write the metric's number of decimals, as in a table; else four significant digits.
        """
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "−∞" if value < 0 else "+∞" if sign else "∞"
        plus = "+" if sign else ""
        if self.decimals is None or not fixed:
            return f"{value:{plus}.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:{plus}.{4 + more}g}"
        text = f"{value:{plus}.{self.decimals + more}f}"
        # A value that rounds to zero has no sign.
        return text.lstrip("+-") if not text.strip("+-0.") else text

    def axis_position(self, value: float) -> float:
        """Return the position of a value on an axis or a colour scale: the value, or its logarithm to base 10."""
        if not self.logarithmic or math.isnan(value) or value == math.inf:
            return value
        return math.log10(value) if value > 0 else -math.inf

    def value_at_position(self, position: float) -> float:
        """Return the value at a position; the inverse of `axis_position`."""
        return float(10.0**position) if self.logarithmic else position

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MetricDescription:
        """Return the record that `to_dict` wrote.

        Raises:
            TypeError, SettingsError: The data is not a metric's description.
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
"""The descriptions of the built-in metrics, by name."""
