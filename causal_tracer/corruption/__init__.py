"""What corrupts the subject: new values for its embeddings."""

from causal_tracer.corruption.base import (
    Corruption,
    SubjectEmbeddings,
    corrupted_embeddings,
    corrupting,
    described,
    embedded_tokens,
    subject_embeddings,
)
from causal_tracer.corruption.counterfactual import CounterfactualSubjects
from causal_tracer.corruption.levels import (
    AUTOMATIC_NOISE_RULE,
    NOISE_MULTIPLIER,
    NoiseRule,
    SubjectsNoise,
    automatic_noise_level,
    embedding_scale,
    noise_level,
    subjects_scale,
)
from causal_tracer.corruption.named import CORRUPTIONS, corruption_named
from causal_tracer.corruption.noise import GaussianNoise, MultivariateNoise, StudentTNoise, UniformNoise
from causal_tracer.corruption.replacing import MeanEmbedding, ZeroEmbedding

__all__ = [
    "AUTOMATIC_NOISE_RULE",
    "CORRUPTIONS",
    "NOISE_MULTIPLIER",
    "Corruption",
    "CounterfactualSubjects",
    "GaussianNoise",
    "MeanEmbedding",
    "MultivariateNoise",
    "NoiseRule",
    "StudentTNoise",
    "SubjectEmbeddings",
    "SubjectsNoise",
    "UniformNoise",
    "ZeroEmbedding",
    "automatic_noise_level",
    "corrupted_embeddings",
    "corrupting",
    "corruption_named",
    "described",
    "embedded_tokens",
    "embedding_scale",
    "noise_level",
    "subject_embeddings",
    "subjects_scale",
]
