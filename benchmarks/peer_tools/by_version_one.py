"""Maps by causal-tracer 1.1.0. It draws the noise itself, and the same seed gives the same noise."""

from __future__ import annotations

from serving import Map, Task, load_model, load_tokenizer, serve

from causal_tracer import LLAMA_LAYER_CONFIG, CausalTracer


class Tracer:
    """A tracer of one model by causal-tracer 1.1.0."""

    def __init__(self, folder: str) -> None:
        # Both models of the benchmark have Llama's module names. Each task sets the noise level.
        self._tracer = CausalTracer(load_model(folder), load_tokenizer(folder), layer_config=LLAMA_LAYER_CONFIG)

    def __call__(self, task: Task) -> Map:
        """Return one map."""
        self._tracer.noise = task.noise
        start, end = task.layers
        flow = self._tracer.calculate_hidden_flow(
            task.prompt,
            task.subject,
            kind=task.site,
            window=task.window,
            samples=task.samples,
            patch_seed=task.seed,
            batch_size=task.batch_rows,
            answer_id_override=task.answer_id,
            start_layer=start,
            end_layer=end,
        )
        return Map(flow.scores[:, start:end].tolist(), float(flow.low_score), float(flow.high_score))


if __name__ == "__main__":
    serve(Tracer)
