"""Collects the scores of sweeps and makes them into maps (`HiddenFlow`)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version

import torch
from torch import Tensor

from causal_tracer.corruption import corruption_label
from causal_tracer.experiment.set_up import Experiment
from causal_tracer.metrics.metric import user_metric_description
from causal_tracer.model.wrappers import model_notes
from causal_tracer.prompts.decoding import decode_together, token_text
from causal_tracer.request.record import to_data
from causal_tracer.request.records import MapSpec, RunOptions, StoredRequest, TraceRequest
from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.results.audit import Audit
from causal_tracer.results.flow import HiddenFlow, TraceSettings
from causal_tracer.results.token_alignment import TokenAlignment
from causal_tracer.results.top_tokens import TopTokens
from causal_tracer.sweep.check import EngineCheck
from causal_tracer.sweep.engine import halving_note
from causal_tracer.sweep.plan import Cell, SweepChunk
from causal_tracer.sweep.top_token_collector import TopTokenCollector
from causal_tracer.version import __version__


class MapBuilder:
    """The maps of one request while they are computed.

    Attributes:
        options: How the maps are computed.
        samples: Number of samples begun so far.
        batch_size: The current largest number of rows in a batch.
    """

    def __init__(self, experiment: Experiment, specs: Mapping[str, MapSpec], options: RunOptions, batch_size: int):
        self.options = options
        self.batch_size = batch_size
        self.samples = 0
        self._experiment = experiment
        self._specs = dict(specs)
        self._sizes = [batch_size]
        self._notes = list(model_notes(experiment.context.traced.model))
        self._dtype = experiment.context.traced.dtype_name
        self._heights = [_height(experiment, spec) for spec in specs.values()]
        shape = (len(specs), 0, max(self._heights, default=0), experiment.context.traced.n_layers)
        self._scores = torch.empty(shape, dtype=torch.float32)
        self._low_scores = torch.empty(0, dtype=torch.float32)
        self._high_score = experiment.high_score
        self._rows = self._columns = torch.empty(0, dtype=torch.long)
        self._cells: list[tuple[int, Cell]] = []
        self._collector: TopTokenCollector | None = None
        self._audits: dict[int, Audit] = {}
        # Copies, so that changing a result does not change the cached clean run.
        activations = experiment.clean.activations
        names = {n for spec in specs.values() for n in experiment.context.traced.activation_names(spec.kind)}
        tokens = len(experiment.prompt)
        self._outputs = {name: activations[name][:tokens].to("cpu", torch.float32, copy=True) for name in names}

    def begin_samples(
        self,
        engine_check: EngineCheck,
        low_scores: Tensor,
        cells: list[tuple[int, Cell]],
        collector: TopTokenCollector | None,
    ) -> None:
        """Begin further samples.

        Args:
            engine_check: The engine that computes the maps.
            low_scores: The metric in the corrupted run of each new sample [samples].
            cells: The cells, each with its map's number.
            collector: Collects the most probable tokens, if they are requested.
        """
        self._engine_check = engine_check
        self._first = self.samples
        self.samples += len(low_scores)
        self._low_scores = torch.cat([self._low_scores, low_scores])
        maps, _, tokens, layers = self._scores.shape
        more = torch.full((maps, len(low_scores), tokens, layers), torch.nan, dtype=torch.float32)
        self._scores = torch.cat([self._scores, more], dim=1)
        self._cells, self._collector = cells, collector
        self._rows = torch.tensor([cell.position for _, cell in cells], dtype=torch.long)
        self._columns = torch.tensor([cell.layer for _, cell in cells], dtype=torch.long)

    def store(self, map_numbers: Tensor, chunk: SweepChunk) -> None:
        """Store scores, given the number of each score's map."""
        place = (map_numbers, self._first + chunk.samples, self._rows[chunk.cells], self._columns[chunk.cells])
        self._scores[place] = chunk.scores

    def on_halved_batch(self, batch_size: int) -> None:
        """Note that the sweep continues with a smaller batch size, since a batch did not fit in the device's memory."""
        self._sizes.append(batch_size)
        self.batch_size = batch_size
        self.discard_partial()

    def discard_partial(self) -> None:
        """Discard the top tokens of cells with only some of their samples, which will be recomputed."""
        if self._collector is not None:
            self._collector.discard_partial()

    def keep_audit(self, map_number: int, audit: Audit) -> None:
        """Keep a map's audit. Of several (as samples are added), the one with the largest difference is kept."""
        before = self._audits.get(map_number)
        if before is None or (before.recomputed, before.largest_difference) < (
            audit.recomputed,
            audit.largest_difference,
        ):
            self._audits[map_number] = audit

    def note(self, text: str) -> None:
        """Add a note to all maps."""
        self._notes.append(text)

    def flows(self, complete: bool = True) -> dict[str, HiddenFlow]:
        """Return the current maps. They share no tensors. Only complete ones have a copy of the clean activations."""
        return {
            name: self._flow(map_number, spec, complete) for map_number, (name, spec) in enumerate(self._specs.items())
        }

    def _flow(self, map_number: int, spec: MapSpec, complete: bool) -> HiddenFlow:
        experiment = self._experiment
        context, prompt, clean = experiment.context, experiment.prompt, experiment.clean
        tokenizer, sample_scores = context.tokenizer, self._scores[map_number, :, : self._heights[map_number]].clone()
        names = context.traced.activation_names(spec.kind) if complete else []
        return HiddenFlow(
            # NaN until all samples of a cell are computed.
            scores=sample_scores.mean(dim=0),
            low_score=float(self._low_scores.mean()),
            high_score=self._high_score,
            input_ids=clean.input_ids[: len(prompt)].clone(),
            input_tokens=list(prompt.tokens),
            subject_range=prompt.subject_range,
            answer=decode_together(tokenizer, experiment.answer_ids),
            kind=spec.kind,
            layer_outputs=OrderedDict((name, self._outputs[name].clone()) for name in names),
            answer_id=experiment.answer_ids[0],
            prompt=prompt.text,
            subject=prompt.subject,
            subject_guessed=prompt.subject_guessed,
            sample_scores=sample_scores,
            low_sample_scores=self._low_scores.clone(),
            settings=self._settings(map_number, spec),
            notes=tuple(self._all_notes(map_number, spec)),
            answer_ids=experiment.answer_ids,
            top_tokens=self._top_tokens(map_number),
            audit=self._audits.get(map_number),
            request=to_data(StoredRequest(experiment.request, spec, self.options)),
            alignment=_alignment(experiment, spec),
        )

    def _settings(self, map_number: int, spec: MapSpec) -> TraceSettings:
        request, context = self._experiment.request, self._experiment.context
        layers = spec.layer_range(context.traced.n_layers)
        metric, foil = request.metric, self._experiment.foil_id
        own = None if isinstance(metric, str) else user_metric_description(self._experiment.metric)
        placebo = self._experiment.placebo if spec.source == "placebo" else None
        second = self._experiment.second
        at = spec.at_tokens(len(self._experiment.prompt))
        return TraceSettings(
            model=context.model_id,
            revision=context.revision,
            dtype=self._dtype,
            noise=self._experiment.noise,
            noise_rule=self._experiment.noise_rule,
            samples=self.samples,
            seed=request.seed,
            window=spec.window,
            batch_size=self.batch_size,
            start_layer=layers.start,
            end_layer=layers.stop,
            subject_tokens_only=spec.subject_tokens_only,
            engine="full" if self._recomputed(map_number) else self._engine_check.name,
            versions=dict(library_versions()),
            corruption=_corruption(self._experiment),
            metric=own.name if own is not None else str(metric),
            direction=request.direction,
            severed=spec.severed,
            placebo=None if placebo is None else placebo.prompt.text,
            read=request.read,
            foil=None if foil is None else token_text(context.tokenizer, foil),
            elsewhere=request.elsewhere,
            metric_description=own,
            token=at[0] if len(at) == 1 else at or None,
            second=None if second is None else second.prompt.text,
            ablation=_ablation(request, spec),
        )

    def _all_notes(self, map_number: int, spec: MapSpec) -> list[str]:
        experiment, request = self._experiment, self._experiment.request
        prompt, notes = experiment.prompt, list(experiment.notes)
        if (count := prompt.subject_count) > 1:
            notes.append(f"The subject occurs {count} times in the prompt. The {request.occurrence} one is traced.")
        if missing := experiment.context.traced.missing_layers(spec.kind):
            notes.append(f"Layers without {SITES[spec.kind].label}: {', '.join(map(str, missing))}.")
        if self.options.engine == "auto" and self._engine_check.tried:
            notes.append(
                f"Computed by the slower sweep {self._engine_check.name!r}. {' '.join(self._engine_check.tried)}"
            )
        alignment = _alignment(experiment, spec)
        if alignment is not None and alignment.without_partner:
            alone = ", ".join(f"{alignment.tokens[place]!r} ({place})" for place in alignment.without_partner)
            notes.append(f"Not computed, since these tokens have no partner in the other prompt: {alone}.")
        if self._recomputed(map_number):
            audit = self._audits[map_number]
            notes.append(
                f"Recomputed by the full sweep: in the audit, a score of the sweep {self._engine_check.name!r} "
                f"differed by {audit.largest_difference:.2g} ({audit.allowed:.2g} is allowed)."
            )
        if len(self._sizes) > 1:
            notes.append(halving_note(self._sizes))
        if experiment.foil_id is not None and experiment.foil_id == experiment.answer_ids[0]:
            notes.append("The answer and the foil begin with the same token.")
        return notes + self._notes

    def _recomputed(self, map_number: int) -> bool:
        return map_number in self._audits and self._audits[map_number].recomputed

    def _top_tokens(self, map_number: int) -> TopTokens | None:
        if self._collector is None:
            return None
        corrupted = self._collector.of_cell(-1) or ()
        clean = self._collector.of_logits(self._experiment.clean.logits[0])
        base = clean if self._experiment.request.direction == "corrupt" else corrupted
        restored = {}
        for number, (owner, cell) in enumerate(self._cells):
            if owner != map_number:
                continue
            found = self._collector.of_cell(number)
            if found is None and not self._scores[map_number, :, cell.position, cell.layer].isnan().any():
                # The cell changes nothing, so it was not run.
                found = base
            if found is not None:
                restored[cell.position, cell.layer] = found
        return TopTokens(clean, corrupted, restored)


def _alignment(experiment: Experiment, spec: MapSpec) -> TokenAlignment | None:
    """Return the alignment with the other prompt that a map uses, if any."""
    other = experiment.placebo if spec.source == "placebo" else experiment.second
    if other is None or spec.ablates:
        return None
    return TokenAlignment(experiment.prompt.tokens, other.prompt.text, other.prompt.tokens, other.partners)


def _corruption(experiment: Experiment) -> str:
    if experiment.second is not None:
        return "second prompt"
    return "Gaussian noise" if experiment.request.corruption == "gaussian" else corruption_label(experiment.corruption)


def _ablation(request: TraceRequest, spec: MapSpec) -> str | None:
    if not spec.ablates or spec.source == "zero":
        return spec.source if spec.ablates else None
    return f"mean over {len(request.mean_over)} prompt{'s' if len(request.mean_over) > 1 else ''}"


def _height(experiment: Experiment, spec: MapSpec) -> int:
    """Return the number of rows of a map."""
    rows = SITES[spec.kind].rows
    if rows != "heads":
        return len(SPANS if rows == "spans" else experiment.prompt)
    return max(heads for _, heads in experiment.context.traced.head_sites.values())


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {"causal_tracer": __version__, "torch": torch.__version__, "transformers": version("transformers")}
