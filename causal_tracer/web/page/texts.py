"""The app's fixed texts: header, help and examples."""

from __future__ import annotations

from dataclasses import dataclass

from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS

TITLE = "Causal tracing"
LEAD = (
    "Where does a language model keep a fact? Corrupt the subject, restore one activation, "
    "and see whether the answer comes back."
)

NO_LINK_YET = "Press Run: the link leads to what it computes."
NOT_FINISHED = "This run is not finished, so it has no link."
BROKEN = "Something went wrong in the app itself. The server's log has the details."

_PROBABILITY = METRIC_DESCRIPTIONS["probability"].labelled("answer")

HOW_TO_READ = f"""
- **Clean run**: the model reads the prompt as it is. *{_PROBABILITY}* is how probable it finds the answer.
- **Corrupted run**: the same, with noise on the embeddings of the subject's tokens (marked **\\***). The answer \
is lost.
- **Restored run**: a corrupted run in which one activation is put back to its clean value. Each cell of the map is \
one: its colour is {_PROBABILITY} then. The stronger the colour, the more of the answer comes back. White is the \
corrupted run, full colour the clean run or better; sand-coloured cells make the answer less probable still.
- With another measure, or activations corrupted, set to zero or to a mean, colours show that; the labels name it.
- **Total effect** = clean − corrupted. **Indirect effect** of a cell = restored − corrupted; point at a cell to see \
it with its standard error over the noise samples.
- **Hidden states** restores the output of a whole layer; **MLP** and **Attention** restore only what these add to it, \
in a window of several layers together, centred on the column's layer.
- An **answer** of your own is read exactly as it is typed: a space at its start counts.
- Look for two places: the last token of the subject in early layers, and the last token of the prompt in late ones.

**What a map does not show**
- It does not predict where *editing* a fact works: measurements of the two hardly agree \
(Hase et al. 2023, arXiv 2301.04213).
- A low {_PROBABILITY} in the clean run, or a small total effect, makes a map unreadable.
- It is one prompt, one answer and one kind of noise. Facts in general need the average of many maps.
- A cell without colour may still be used: information in several places does not come back from one of them.
- Grey cells were not computed. That is not the same as no effect.

Method: Meng et al. 2022, *Locating and Editing Factual Associations in GPT*, arXiv 2202.05262, section 2.
"""

STUDIES = (
    "One map shows one fact. A study traces many facts, and averages the indirect effect over each fact's tokens of a "
    "role, then over facts (AIE). These studies are stored; `causal-tracer study` runs another."
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
