"""The exceptions of this package.

    CausalTracerError
    ├── SettingsError          an argument is of another type, out of range, or contradicts another
    ├── PromptError            the prompt cannot be traced: empty, too long, no tokens
    │   └── SubjectError       the subject is not in the prompt, or none could be guessed
    ├── TokenizerError         the tokenizer cannot say which characters a token covers
    ├── ModelLoadError         a model or its files could not be loaded
    │   └── EmbeddedModelError the model that comes with pip is missing or damaged
    ├── ModelStructureError    embedding, blocks, attention or MLP were not found, or weights are missing
    ├── NumericsError          a run, a metric or a corruption gave NaN or infinite numbers
    ├── ResultFormatError      a saved result could not be read
    ├── ExportError            a result or figure could not be written
    ├── PicklingError          a tracer holds something that cannot be pickled
    ├── StudyError             a study's folder is damaged, in use, or was made with other settings
    │   └── FactsError         facts could not be read, or are not facts
    ├── BusyError              the app has no capacity for a request now, or the request exceeded its limits
    ├── ResultLostError        the app no longer has the result that an open page shows
    └── TraceCancelled         the caller asked the sweep to stop

Every message says what is wrong, what was given, and what to do. torch's OutOfMemoryError, and exceptions raised by a
caller's own `progress` and `cancelled` functions, are not caught or wrapped. Errors about arguments are also
`ValueError`s, so that code written for causal-tracer 1.1.0 still catches them.
"""


class CausalTracerError(Exception):
    """Base class of the exceptions of this package."""


class SettingsError(CausalTracerError, ValueError):
    """An argument is of another type, out of range, or contradicts another."""


class PromptError(CausalTracerError, ValueError):
    """The prompt cannot be traced."""


class SubjectError(PromptError):
    """The subject was not found in the prompt, or could not be guessed."""


class TokenizerError(CausalTracerError):
    """The tokenizer cannot say which characters of the prompt its tokens cover."""


class ModelLoadError(CausalTracerError):
    """A model or its files could not be loaded."""


class EmbeddedModelError(ModelLoadError):
    """The model that comes with pip is missing or damaged."""


class ModelStructureError(CausalTracerError):
    """The model's embedding, blocks, attention or MLP were not found or do not fit together, or weights are missing."""


class NumericsError(CausalTracerError):
    """A run gave NaN or infinite logits, or a metric or corruption gave NaN or infinite values."""


class ResultFormatError(CausalTracerError, ValueError):
    """A saved result could not be read."""


class ExportError(CausalTracerError):
    """A result or figure could not be written in the format or place asked for."""


class PicklingError(CausalTracerError, TypeError):
    """A tracer holds something that cannot be pickled."""


class StudyError(CausalTracerError):
    """A study's folder is damaged, in use, or was made with other settings, or its audit failed."""


class FactsError(StudyError, ValueError):
    """Facts could not be read, or are not facts."""


class ResultLostError(CausalTracerError):
    """The app no longer has the result that an open page shows."""


class BusyError(CausalTracerError):
    """The app has no capacity for a request now, or the request exceeded its limits."""


class TraceCancelled(CausalTracerError):
    """The caller asked the sweep to stop before it was complete."""
