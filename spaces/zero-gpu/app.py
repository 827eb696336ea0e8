"""The app of the Space on ZeroGPU: it loads the models, then starts the page; `trace_on_gpu` computes the maps."""

# Imported before torch, which it patches.
import spaces

# isort: split
import sys
from collections.abc import Iterator

from causal_tracer.web.launch import main
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.zero_gpu.tracing import place_models, seconds_asked

models = place_models(ServiceSettings.from_environment().models)


@spaces.GPU(duration=seconds_asked)
def trace_on_gpu(asked: str) -> Iterator[str]:
    """Compute the maps of a request, which is JSON text; yield the answers as JSON text."""
    yield from models.compute(asked)


if __name__ == "__main__":
    sys.exit(main(load=models.loader(trace_on_gpu)))
