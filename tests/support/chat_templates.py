"""Chat templates, and tokenizers that have them."""

from __future__ import annotations

import copy
from typing import Any

from tests.support.tiny_models import tiny_tokenizer

PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


TRIMMED = PLAIN.replace("m['content']", "m['content'] | trim")


def with_template(template: str) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer(bos=True))
    tokenizer.chat_template = template
    return tokenizer
