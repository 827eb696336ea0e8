"""A tokenizer in Python, which tells no character offsets."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizer


class SlowTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python, without offsets: one token a byte, and a BOS."""

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, *, lossy: bool = False, **kwargs: Any) -> None:
        self.lossy = lossy
        super().__init__(bos_token="<bos>", unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {**{f"<{number}>": number for number in range(256)}, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = text.lower().replace(",", "") if self.lossy else text
        return [f"<{number}>" for number in text.encode("utf-8")]

    def _convert_token_to_id(self, token: str) -> int:
        return int(token[1:-1])

    def _convert_id_to_token(self, index: int) -> str:
        return f"<{index}>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        numbers = [token[1:-1] for token in tokens]
        if not all(number.isdigit() for number in numbers):
            return "".join(tokens)
        return bytes(map(int, numbers)).decode("utf-8", errors="replace")

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return [self.bos_token_id, *token_ids_0]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 1
