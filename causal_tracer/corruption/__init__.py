"""Corruptions: functions that return new embeddings for the subject's tokens."""

from causal_tracer.corruption.base import Corruption, SubjectEmbeddings, TokenEmbedding, corruption_label
from causal_tracer.corruption.counterfactual import CounterfactualSubjects
from causal_tracer.corruption.named import CORRUPTION_RECORDS, CORRUPTIONS, NamedCorruption, corruption_named
from causal_tracer.corruption.noise import GaussianNoise, MultivariateNoise, StudentTNoise, UniformNoise
from causal_tracer.corruption.noise_rules import AUTOMATIC_NOISE_RULE, NOISE_MULTIPLIER, NoiseRule, SubjectsNoise
from causal_tracer.corruption.replacing import MeanEmbedding, NoCorruption, ZeroEmbedding

__all__ = [
    "AUTOMATIC_NOISE_RULE",
    "CORRUPTIONS",
    "CORRUPTION_RECORDS",
    "NOISE_MULTIPLIER",
    "Corruption",
    "CounterfactualSubjects",
    "GaussianNoise",
    "MeanEmbedding",
    "MultivariateNoise",
    "NamedCorruption",
    "NoCorruption",
    "NoiseRule",
    "StudentTNoise",
    "SubjectEmbeddings",
    "SubjectsNoise",
    "TokenEmbedding",
    "UniformNoise",
    "ZeroEmbedding",
    "corruption_label",
    "corruption_named",
]
