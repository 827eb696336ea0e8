"""Turning text into tokens: prompts, subjects, answers and conversations."""
