"""Maps by this project, as in its README."""

from __future__ import annotations

from serving import Map, Task, serve

from causal_tracer import CausalTracer


class Tracer:
    """A tracer of one model by this project."""

    def __init__(self, folder: str) -> None:
        self._tracer = CausalTracer.from_pretrained(folder, dtype="float32")

    def __call__(self, task: Task) -> Map:
        """Return one map."""
        start, end = task.layers
        flow = self._tracer.trace(
            task.prompt,
            task.subject,
            kind=task.site,
            window=task.window,
            noise=task.noise,
            samples=task.samples,
            seed=task.seed,
            answer_id=task.answer_id,
            start_layer=start,
            end_layer=end,
        )
        return Map(flow.scores[:, start:end].tolist(), float(flow.low_score), float(flow.high_score))


if __name__ == "__main__":
    serve(Tracer)
