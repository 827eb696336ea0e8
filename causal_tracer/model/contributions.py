"""Finding the modules whose outputs a block adds to the residual stream, and which of them mix tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.hooks import Edit, add_stream_hook, editing_outputs
from causal_tracer.model.probing import Call, record_calls, shifted, token_dim
from causal_tracer.model.quantization import has_matrix

_ATTENTION_NAMES = re.compile(r"attn|attention|mixer|mamba|ssm|recurrent|temporal", re.IGNORECASE)
_MLP_NAMES = re.compile(r"mlp|ffn|ff$|feed_?forward|fc2|moe|dense_4h_to_h|channel", re.IGNORECASE)
_NO_SITES = re.compile(r"norm|ln_|hyper|_hc|dropout|residual|input", re.IGNORECASE)


def find_contributions(
    model: nn.Module, block_name: str, ids: Tensor, width: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names, relative to the block, of its attention and of its MLP; either may be missing.

    Args:
        model: The model.
        block_name: The block.
        ids: Token ids for the probe run.
        width: Width of the token embedding: where blocks keep several streams, the modules inside are as narrow.

    Raises:
        ModelStructureError: No modules were found, or they do not behave like attention and MLP.
    """
    block = model.get_submodule(block_name)
    inside = [f"{block_name}.{name}" for name, _ in block.named_modules() if name]
    recorded = record_calls(model, [*inside, block_name], ids)
    # Blocks may share modules, such as an activation function, which other blocks call afterwards.
    *calls, whole = recorded[: 1 + next(n for n, call in enumerate(recorded) if call.name == block_name)]
    if whole.source is None:
        raise ModelStructureError(f"Block {block_name!r} of {type(model).__name__} was not given the residual stream.")
    candidates = _distinct([call for call in calls if call.output.shape[-1] in (whole.output.shape[-1], width)], whole)
    alike = [call for call in candidates if call.output.shape == whole.output.shape]
    contributions = additive_contributions(alike, whole)
    if any(_only_normalises(model, call) and _feeds(call, contributions) for call in contributions):
        contributions = []  # it is a norm of the residual, as in blocks that normalise after adding
    by_name = not contributions
    if by_name:
        contributions = _named_contributions(candidates, block_name)
    names = [
        _behind_norm(model, call, candidates).name
        for call in contributions
        if not (_only_normalises(model, call) and call.source is not None and torch.equal(call.source, whole.source))
    ]
    if not names:
        children = ", ".join(name for name, _ in block.named_children())
        raise ModelStructureError(
            f"In block {block_name!r} of {type(model).__name__} no modules were found whose outputs sum to what the "
            f"block adds. It holds {children}. Name attention and MLP with a LayerConfig."
        )
    outputs = {call.name: call.output for call in calls}
    attention, mlp = _by_mixing(model, whole, {name: outputs[name] for name in names}, ids)
    if by_name:
        _require_named(model, block_name, attention, mlp, calls)
    cut = len(block_name) + 1
    return tuple(name[cut:] for name in attention), tuple(name[cut:] for name in mlp)


def _distinct(calls: list[Call], whole: Call) -> list[Call]:
    """Return calls with different outputs, the shallowest modules first, without zeros and copies of the residual."""
    kept: list[Call] = []
    for call in sorted(calls, key=lambda call: call.name.count(".")):
        same_as_kept = any(torch.equal(call.output, other.output) for other in kept)
        is_residual = torch.equal(call.output, whole.output) or torch.equal(call.output, whole.source)  # type: ignore[arg-type]
        if not same_as_kept and not is_residual and bool(call.output.any()):
            kept.append(call)
    return kept


def additive_contributions(candidates: list[Call], whole: Call) -> list[Call]:
    """Return the fewest, shallowest outputs that sum, times positive factors, to what the block adds; none if none do.

    All candidates are fitted to the sum at once; then those that the fit does not need are left out, the deepest first.
    In half precisions the fit allows for rounding, and a small contribution can be as small as the rounding: there a
    candidate is left out only if the fit without it is as good as with all. Blocks that scale the residual are fitted
    with a factor for it, those that start a new one without it.
    """
    if whole.source is None or not candidates:
        return []
    output, source = whole.output.double().flatten(), whole.source.double().flatten()
    columns = [call.output.double().flatten() for call in candidates]
    if len(output) <= len(columns) + 1:
        return []
    size = max(float((output - source).norm()), 1e-30)
    rounding = 8 * torch.finfo(whole.output.dtype).eps * float(output.norm()) / size
    limit = max(1e-4, rounding) * size
    for target, residual in ((output - source, []), (output, [source]), (output, [])):
        matrix = torch.stack([*columns, *residual], dim=1)
        scales = matrix.norm(dim=0).clamp_min(1e-30)
        # Fits with some of the columns need only the triangle and the part of the target outside all columns.
        orthogonal, triangle = torch.linalg.qr(matrix / scales)
        projected = orthogonal.T @ target
        outside = (target - orthogonal @ projected).norm()
        problem = torch.cat([triangle, triangle.new_zeros(1, len(scales))]), torch.cat([projected, outside[None]])
        always = list(range(len(candidates), len(scales)))
        chosen = list(range(len(candidates)))
        best = _fit(*problem, chosen + always)[0]
        if best > limit:
            continue
        needless = min(limit, max(1e-4 * size, 1.2 * best))
        for index in reversed(range(len(candidates))):
            without = [other for other in chosen if other != index]
            if without and _fit(*problem, without + always)[0] <= needless:
                chosen = without
        factors = _fit(*problem, chosen + always)[1] / scales[chosen + always]
        if bool((factors > 1e-3).all()):
            return [candidates[index] for index in chosen]
    return []


def _fit(matrix: Tensor, target: Tensor, chosen: list[int]) -> tuple[float, Tensor]:
    """Fit some columns of a matrix to a target; return the residual's norm and the factors."""
    part = matrix[:, chosen]
    factors = torch.linalg.lstsq(part, target[:, None], driver="gelsd").solution[:, 0]
    return float((part @ factors - target).norm()), factors


def _named_contributions(candidates: list[Call], block_name: str) -> list[Call]:
    cut = len(block_name) + 1
    chosen = []
    for pattern in (_ATTENTION_NAMES, _MLP_NAMES):
        parts = [(call, call.name[cut:].split(".")[0]) for call in candidates]
        named = [call for call, part in parts if pattern.search(part) and not _NO_SITES.search(part)]
        chosen += named[:1]
    return chosen


def _require_named(
    model: nn.Module, block_name: str, attention: Sequence[str], mlp: Sequence[str], calls: list[Call]
) -> None:
    """Check that modules chosen by name behave as they are called, and return what is added, not the sum."""
    cut = len(block_name) + 1
    where = f"In block {block_name!r} of {type(model).__name__} no modules sum to what the block adds"
    advice = "Name the modules whose outputs are added to the residual in a LayerConfig."
    outputs = {call.name: call.output for call in calls}
    for kind, names, pattern in (("attention", attention, _ATTENTION_NAMES), ("MLP", mlp, _MLP_NAMES)):
        if len(names) != 1:
            raise ModelStructureError(f"{where}, and {len(names)} of them behave like {kind}. {advice}")
        name = names[0][cut:]
        if not pattern.search(name.split(".")[0]):
            raise ModelStructureError(f"{where}, and {name!r} behaves like {kind} and is not called so. {advice}")
        for call in calls:
            same = call.name.startswith(f"{names[0]}.") and torch.equal(call.output, outputs[names[0]])
            is_norm = _only_normalises(model, call) and any(True for _ in model.get_submodule(call.name).parameters())
            if same and is_norm:
                raise ModelStructureError(
                    f"{where}: {name!r} adds the residual itself and normalises the sum. {advice}"
                )


def _only_normalises(model: nn.Module, call: Call) -> bool:
    return not has_matrix(model.get_submodule(call.name))


def _feeds(call: Call, others: list[Call]) -> bool:
    """Check whether one of the others takes a module's output."""
    sources = [other.source for other in others if other is not call]
    return any(
        source is not None and source.shape == call.output.shape and torch.equal(source, call.output)
        for source in sources
    )


def _behind_norm(model: nn.Module, call: Call, candidates: list[Call]) -> Call:
    """Return the module whose output a contribution only normalises, or the contribution itself."""
    if not _only_normalises(model, call) or call.source is None:
        return call
    fed_by = [
        other
        for other in candidates
        if other is not call and other.output.shape == call.source.shape and torch.equal(other.output, call.source)
    ]
    return _behind_norm(model, fed_by[0], candidates) if fed_by else call


def _by_mixing(model: nn.Module, whole: Call, clean: Mapping[str, Tensor], ids: Tensor) -> tuple[list[str], list[str]]:
    """Return the modules that mix tokens, and the others.

    Where none of several does, attention may read the keys of an earlier block (Gemma 3n): then earlier tokens are
    moved from the embedding on. Where all do, an MLP is behind a short convolution or token shift (Inkling, RWKV):
    those that do not see the first token are then the MLP.

    Args:
        model: The model.
        whole: The call of the block in the probe run.
        clean: The output of each module there [tokens, width], by name.
        ids: Token ids of the probe run.
    """

    def moved_by(tokens: range, at_block: bool = True) -> list[str]:
        return [name for name in clean if _moves(model, whole, clean, ids, name, tokens, at_block)]

    last = ids.shape[1] - 1
    mixing = moved_by(range(last))
    if not mixing and len(clean) > 1:
        mixing = moved_by(range(last), at_block=False)
    if len(mixing) == len(clean) > 1:
        mixing = moved_by(range(1)) or mixing
    return mixing, [name for name in clean if name not in mixing]


def _moves(
    model: nn.Module, whole: Call, clean: Mapping[str, Tensor], ids: Tensor, name: str, tokens: range, at_block: bool
) -> bool:
    """Check whether a module's output at the last token moves when the stream is shifted at earlier tokens.

    The stream is shifted at the block or from the start, and the outputs of all other modules are held.
    """
    n_tokens = ids.shape[1]

    def shift(stream: Tensor) -> Tensor:
        return shifted(stream, tokens, token_dim(stream, n_tokens))

    def with_clean_last_token(stream: Tensor) -> Tensor:
        changed = stream.clone()
        last = changed.movedim(token_dim(stream, n_tokens), 0)[-1]
        if whole.source is not None:
            last.copy_(whole.source[-1].reshape(last.shape))
        return changed

    def hold(output: Tensor) -> Edit:
        # A copy, since some models add the residual into a module's output in place.
        return lambda activation: output.to(activation, copy=True).reshape(activation.shape)

    edits = {model.get_submodule(other): hold(output) for other, output in clean.items() if other != name}
    if not at_block:
        edits[model.get_input_embeddings()] = shift  # type: ignore[operator]
    change = shift if at_block else with_clean_last_token
    with editing_outputs(edits, n_tokens), add_stream_hook(model.get_submodule(whole.name), change):
        moved = record_calls(model, [name], ids)[-1].output
    last, before = moved[-1].double(), clean[name][-1].double()
    return float((last - before).norm()) > 1e-3 * float(before.norm())
