"""Maps by this project, as its README has them."""

from __future__ import annotations

from serving import Map, Task, load_model, load_tokenizer, serve

from causal_tracer import CausalTracer


class Tracer:
    """A tracer, made once."""

    def __init__(self, folder: str) -> None:
        self._parts = load_model(folder), load_tokenizer(folder)
        self._tracers: dict[float, CausalTracer] = {}

    def __call__(self, task: Task) -> Map:
        """Return one map."""
        if task.noise not in self._tracers:
            self._tracers[task.noise] = CausalTracer(*self._parts, noise=task.noise)
        start, end = task.layers
        flow = self._tracers[task.noise].trace(
            task.prompt,
            task.subject,
            kind=task.site,
            window=task.window,
            samples=task.samples,
            seed=task.seed,
            answer_id=task.answer_id,
            start_layer=start,
            end_layer=end,
        )
        return Map(flow.scores[:, start:end].tolist(), float(flow.low_score), float(flow.high_score))


if __name__ == "__main__":
    serve(Tracer)
