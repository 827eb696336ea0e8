"""A transformer built by hand, so that it is known where it computes its answer and what a correct map must show.

It is a GPT-2 with six blocks whose weights are set one by one. It knows the cities of six buildings:

    block 0  attention, head 1   the subject's last token reads the building's name from the subject's first token
    block 2  MLP                 at the subject's last token, looks up the building's city
    block 3  attention, head 2   the subject's last token attends to itself and copies the city to another subspace
    block 4  attention, head 0   the prompt's last token reads the city from the subject's last token

All other weights are zero. `python examples/glass_box.py` traces it and prints the maps.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from causal_tracer import GPT2_LAYER_CONFIG, CausalTracer, MapSpec, TraceRequest

FACTS = {
    "Space Needle": "Seattle",
    "Eiffel Tower": "Paris",
    "Brandenburg Gate": "Berlin",
    "Burj Khalifa": "Dubai",
    "Blue Mosque": "Istanbul",
    "Golden Temple": "Amritsar",
}
TEMPLATE = "Look , the {} stands in the city of"
PROMPT, SUBJECT = TEMPLATE.format("Space Needle"), "Space Needle"
FIRST_SUBJECT, LAST_SUBJECT, LAST = 4, 5, 10
"""Positions in the prompt: <bos> Look , the Space Needle stands in the city of."""

N_LAYERS = 6
GATHERING, LOOKUP, READYING, MOVING = (0, 1), 2, (3, 2), (4, 0)
"""The block of each step, and its head if it is attention."""

NOISE = 2.0
"""Standard deviation of the noise. It hides the building, but not the marks of the tokens."""

_N = len(FACTS)
_N_HEADS, _HEAD = 4, 12
_WIDTH = _N_HEADS * _HEAD
# Dimensions of the residual stream. The first two are large and opposite at every token, so that each layer norm
# divides by the same number at all tokens; the norms' weights undo that division.
_LARGE, _BOS, _FIRST, _LAST_OF_SUBJECT, _END = slice(0, 2), 2, 3, 4, 5
_NAMED, _GATHERED, _CITY, _READY, _SAID = (torch.arange(6 + _N * i, 6 + _N * (i + 1)) for i in range(5))
_BALANCE = 47
_SIZE = 2000.0
_MARK = 600.0


def glass_box_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token for each word, and <bos> at the start."""
    words = "<bos> Look , the stands in city of".split()
    words += [word for subject in FACTS for word in subject.split()] + list(FACTS.values())
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<bos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", clean_up_tokenization_spaces=False)


def glass_box_model() -> GPT2LMHeadModel:
    """Return the model, in evaluation mode."""
    vocab = glass_box_tokenizer().get_vocab()
    config = GPT2Config(
        vocab_size=len(vocab),
        n_embd=_WIDTH,
        n_layer=N_LAYERS,
        n_head=_N_HEADS,
        n_positions=32,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = name.split(".")[-2].startswith("ln_") and name.endswith("weight")
            parameter.fill_(_SIZE * (2 / _WIDTH) ** 0.5 if norm else 0.0)
        _embed(model.transformer.wte.weight, vocab)
        _attend(model, GATHERING, _LAST_OF_SUBJECT, _FIRST, _NAMED, _GATHERED, gain=20.0)
        _look_up(model)
        _attend(model, READYING, _LAST_OF_SUBJECT, _LAST_OF_SUBJECT, _CITY, _READY, gain=1.0)
        _attend(model, MOVING, _END, _LAST_OF_SUBJECT, _READY, _SAID, gain=1.0)
        for number, city in enumerate(FACTS.values()):
            model.lm_head.weight[vocab[city], _SAID[number]] = 0.125
    return model


def glass_box_tracer() -> CausalTracer:
    """Return a tracer of the model. It names the modules, since probing cannot find modules whose weights are zero."""
    return CausalTracer(
        glass_box_model(), glass_box_tokenizer(), GPT2_LAYER_CONFIG, noise=NOISE, model_id="a glass box"
    )


def _embed(weight: Tensor, vocab: dict[str, int]) -> None:
    """Set the embeddings: two large dimensions for all tokens, marks, and the building at the subject's first token."""
    weight[:, _LARGE] = torch.tensor([_SIZE, -_SIZE])
    weight[vocab["<bos>"], _BOS] = _MARK
    weight[vocab["of"], _END] = _MARK
    for number, subject in enumerate(FACTS):
        first, last = subject.split()
        weight[vocab[first], _FIRST] = _MARK
        weight[vocab[first], _NAMED[number]] = 1.0
        weight[vocab[last], _LAST_OF_SUBJECT] = _MARK
    # Layer norm also subtracts the mean, so the mean is made zero.
    weight[:, _BALANCE] = -weight.sum(dim=1)


def _attend(
    model: GPT2LMHeadModel, where: tuple[int, int], asking: int, asked: int, read: Tensor, write: Tensor, gain: float
) -> None:
    """Set one head, which copies the dimensions `read` to `write`.

    Tokens with the mark `asking` attend to those with the mark `asked`. All other tokens attend to <bos>.
    """
    layer, head = where
    attention = model.transformer.h[layer].attn
    query = head * _HEAD
    key, value = query + _WIDTH, query + 2 * _WIDTH
    strength, rest = (40.0 * _HEAD**0.5) ** 0.5, (20.0 * _HEAD**0.5) ** 0.5
    attention.c_attn.weight[asking, query] = strength / _MARK
    attention.c_attn.weight[asked, key] = strength / _MARK
    attention.c_attn.bias[query + 1] = rest
    attention.c_attn.weight[_BOS, key + 1] = rest / _MARK
    for number in range(_N):
        attention.c_attn.weight[read[number], value + number] = gain
        attention.c_proj.weight[query + number, write[number]] = 1.0


def _look_up(model: GPT2LMHeadModel) -> None:
    """Set the MLP: one neuron for each building, which writes the city if the building's activation is large enough."""
    mlp = model.transformer.h[LOOKUP].mlp
    for number in range(_N):
        mlp.c_fc.weight[_GATHERED[number], number] = 1.0
        mlp.c_fc.bias[number] = -8.0
        mlp.c_proj.weight[number, _CITY[number]] = 8.0


def main() -> None:
    """Trace the model and print where restoring brings the answer back."""
    maps = {"hidden": MapSpec(), "mlp": MapSpec("mlp", 1), "attention": MapSpec("attention", 1)}
    flows = glass_box_tracer().trace_maps(TraceRequest(PROMPT, SUBJECT, samples=20), maps)
    for kind, flow in flows.items():
        print(f"{kind}: P({flow.answer}) = {flow.high_score:.2f} clean, {flow.low_score:.2f} corrupted")
        for token, row in zip(flow.input_tokens, flow.scores.tolist(), strict=True):
            print(f"{token:>8} " + " ".join(f"{score:.2f}" for score in row))


if __name__ == "__main__":
    main()
