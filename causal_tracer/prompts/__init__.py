"""From text to tokens: prompts, subjects, answers, conversations."""
