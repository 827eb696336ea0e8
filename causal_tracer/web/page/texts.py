"""The app's fixed texts: header, help and examples."""

from __future__ import annotations

from dataclasses import dataclass

from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS

TITLE = "Causal tracing"
LEAD = (
    "Where does a language model keep a fact? Corrupt the subject, restore one activation, "
    "and see whether the answer comes back."
)

NO_LINK_YET = "Press Run. The link to its result then appears here."
NOT_FINISHED = "The link appears here when the run is finished."
UNEXPECTED_ERROR = "Something went wrong in the app itself. The server's log has the details."

_PROBABILITY = METRIC_DESCRIPTIONS["probability"].labelled("answer")

HOW_TO_READ = f"""
- **Clean run**: the model reads the prompt as it is. *{_PROBABILITY}* is the probability that it gives to the answer.
- **Corrupted run**: the same, with noise on the embeddings of the subject's tokens (marked **\\***). The answer \
is lost.
- **Restored run**: a corrupted run in which one activation is put back to its clean value. Each cell of the map is \
one restored run, and its colour is {_PROBABILITY} in that run. The stronger the colour, the more of the answer comes \
back. White is the corrupted run; full colour is the clean run or better. Sand-coloured cells make the answer less \
probable than in the corrupted run.
- With another metric, or with activations corrupted, set to zero or set to a mean, the colours show the metric in \
those runs. The labels name both.
- **Total effect** = clean − corrupted. **Indirect effect** of a cell = restored − corrupted. Point at a cell to see \
its indirect effect, with the standard error over the noise samples.
- **Hidden states** restores the output of a whole layer (the residual stream). **MLP** and **Attention** restore only \
what that module adds to it, in a window of several consecutive layers centred on the column's layer.
- An **answer** of your own is taken exactly as you type it: a space at its start counts.
- Look for two places: the last token of the subject in early layers, and the last token of the prompt in late layers.

**What a map does not show**
- It does not predict where *editing* a fact works: the two hardly correlate (Hase et al. 2023, arXiv 2301.04213).
- A low {_PROBABILITY} in the clean run, or a small total effect, makes a map unreadable.
- It is one prompt, one answer and one kind of noise. A statement about facts in general needs the average of many maps.
- The model may still use a cell without colour: information held in several places does not come back when only one \
of them is restored.
- Grey cells were not computed. That is not the same as no effect.

Method: Meng et al. 2022, *Locating and Editing Factual Associations in GPT*, arXiv 2202.05262, section 2.
"""

STUDIES = (
    "One map shows one fact. A study traces many facts. It averages the indirect effect over a fact's tokens of each "
    "role, then over facts (average indirect effect, AIE). These studies are stored; `causal-tracer study` runs more."
)


@dataclass(frozen=True)
class Example:
    """A fact that the embedded model knows."""

    label: str
    prompt: str
    subject: str


EXAMPLES = (
    Example("Space Needle → Seattle", "The Space Needle is located in the city of", "The Space Needle"),
    Example("Steve Jobs → Apple", "Steve Jobs was the founder of", "Steve Jobs"),
    Example("Colosseum → Rome", "The Colosseum is in the city of", "The Colosseum"),
    Example("Taj Mahal → Agra", "The Taj Mahal is located in the city of", "The Taj Mahal"),
    Example("Windows 10 → Microsoft", "Windows 10 was developed by", "Windows 10"),
    Example("Jordan → basketball", "Michael Jordan plays the sport of", "Michael Jordan"),
    Example("Brazil → Portuguese", "The official language of Brazil is", "Brazil"),
)
