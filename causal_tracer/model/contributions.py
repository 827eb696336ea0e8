"""Finding the modules whose outputs a block adds to the residual stream, and which of them mix tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.hooks import Edit, add_stream_hook, editing_outputs
from causal_tracer.model.probing import Call, perturbed, record_calls, token_dim
from causal_tracer.model.quantization import has_matrix

_ATTENTION_NAMES = re.compile(r"attn|attention|mixer|mamba|ssm|recurrent|temporal", re.IGNORECASE)
_MLP_NAMES = re.compile(r"mlp|ffn|ff$|feed_?forward|fc2|moe|dense_4h_to_h|channel", re.IGNORECASE)
_NO_SITES = re.compile(r"norm|ln_|hyper|_hc|dropout|residual|input", re.IGNORECASE)


def find_contributions(
    model: nn.Module, block_name: str, ids: Tensor, width: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a block's attention modules and MLP modules, relative to the block. Either may be empty.

    Args:
        model: The model.
        block_name: The block.
        ids: Token ids for the probe run.
        width: Width of the token embedding. If blocks have several streams, the modules inside have this width.

    Raises:
        ModelStructureError: No modules were found, or they do not behave like attention and MLP.
    """
    block = model.get_submodule(block_name)
    inside = [f"{block_name}.{name}" for name, _ in block.named_modules() if name]
    recorded = record_calls(model, [*inside, block_name], ids)
    # Blocks may share modules, such as an activation function. Calls of them by later blocks are dropped.
    *calls, block_call = recorded[: 1 + next(n for n, call in enumerate(recorded) if call.name == block_name)]
    if block_call.input is None:
        raise ModelStructureError(
            f"Block {block_name!r} of {type(model).__name__} does not take the residual stream as an argument, so what "
            "it adds to the stream is unknown. Name attention and MLP with a LayerConfig."
        )
    candidates = _distinct(
        [call for call in calls if call.output.shape[-1] in (block_call.output.shape[-1], width)], block_call
    )
    alike = [call for call in candidates if call.output.shape == block_call.output.shape]
    contributions = additive_contributions(alike, block_call)
    if any(_only_normalises(model, call) and _feeds(call, contributions) for call in contributions):
        contributions = []  # the norm normalises the residual, as in blocks that normalise after adding
    by_name = not contributions
    if by_name:
        contributions = _named_contributions(candidates, block_name)
    names = [
        _behind_norm(model, call, candidates).name
        for call in contributions
        if not (_only_normalises(model, call) and call.input is not None and torch.equal(call.input, block_call.input))
    ]
    if not names:
        children = ", ".join(name for name, _ in block.named_children())
        raise ModelStructureError(
            f"In block {block_name!r} of {type(model).__name__} no modules were found whose outputs sum to what the "
            f"block adds to the residual stream. The block contains {children}. Name attention and MLP with a "
            "LayerConfig."
        )
    outputs = {call.name: call.output for call in calls}
    attention, mlp = _by_mixing(model, block_call, {name: outputs[name] for name in names}, ids)
    if by_name:
        _require_named(model, block_name, attention, mlp, calls)
    cut = len(block_name) + 1
    return tuple(name[cut:] for name in attention), tuple(name[cut:] for name in mlp)


def _distinct(calls: list[Call], block_call: Call) -> list[Call]:
    """Return calls with distinct outputs, shallowest modules first, without zeros and copies of the residual."""
    kept: list[Call] = []
    residuals = [residual for residual in (block_call.input, block_call.output) if residual is not None]
    for call in sorted(calls, key=lambda call: call.name.count(".")):
        same_as_kept = any(torch.equal(call.output, other.output) for other in kept)
        is_residual = any(torch.equal(call.output, residual) for residual in residuals)
        if not same_as_kept and not is_residual and bool(call.output.any()):
            kept.append(call)
    return kept


def additive_contributions(candidates: list[Call], block_call: Call) -> list[Call]:
    """Return the fewest, shallowest calls whose outputs, times positive factors, sum to what the block adds.

    All candidates are fitted to the sum by least squares. Then those that the fit does not need are left out, the
    deepest first. In half precision the fit allows for rounding. A small contribution can be as small as the rounding,
    so there a candidate is left out only if the fit without it is as good as with all.

    Three sums are tried: (block output - block input), the block output with the input as another term (for blocks
    that scale the residual), and the block output alone (for blocks that start a new residual).

    Returns:
        The calls; empty if no fit is good enough.
    """
    if block_call.input is None or not candidates:
        return []
    output, source = block_call.output.double().flatten(), block_call.input.double().flatten()
    columns = [call.output.double().flatten() for call in candidates]
    if len(output) <= len(columns) + 1:
        return []
    size = max(float((output - source).norm()), 1e-30)
    rounding = 8 * torch.finfo(block_call.output.dtype).eps * float(output.norm()) / size
    limit = max(1e-4, rounding) * size
    for target, residual in ((output - source, []), (output, [source]), (output, [])):
        matrix = torch.stack([*columns, *residual], dim=1)
        scales = matrix.norm(dim=0).clamp_min(1e-30)
        # By the QR decomposition, fits with fewer columns need only R and the target's part outside all columns.
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
    """Fit some columns of a matrix to a target by least squares; return the norm of the error and the factors."""
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
    """Check that modules chosen by name behave like attention and MLP, and that their outputs exclude the residual."""
    cut = len(block_name) + 1
    where = f"In block {block_name!r} of {type(model).__name__} no modules sum to what the block adds"
    advice = "Name the modules whose outputs are added to the residual stream with a LayerConfig."
    outputs = {call.name: call.output for call in calls}
    for kind, names, pattern in (("attention", attention, _ATTENTION_NAMES), ("MLP", mlp, _MLP_NAMES)):
        if len(names) != 1:
            raise ModelStructureError(f"{where}, and {len(names)} of them behave like {kind}. {advice}")
        name = names[0][cut:]
        if not pattern.search(name.split(".")[0]):
            raise ModelStructureError(f"{where}, and {name!r} behaves like {kind} but has another name. {advice}")
        for call in calls:
            same = call.name.startswith(f"{names[0]}.") and torch.equal(call.output, outputs[names[0]])
            is_norm = _only_normalises(model, call) and any(True for _ in model.get_submodule(call.name).parameters())
            if same and is_norm:
                raise ModelStructureError(
                    f"{where}: {name!r} itself adds the residual and normalises the sum. {advice}"
                )


def _only_normalises(model: nn.Module, call: Call) -> bool:
    return not has_matrix(model.get_submodule(call.name))


def _feeds(call: Call, others: list[Call]) -> bool:
    """Check whether one of the other calls takes this call's output as its input."""
    sources = [other.input for other in others if other is not call]
    return any(
        source is not None and source.shape == call.output.shape and torch.equal(source, call.output)
        for source in sources
    )


def _behind_norm(model: nn.Module, call: Call, candidates: list[Call]) -> Call:
    """Return the call whose output a contribution only normalises, or else the contribution itself."""
    if not _only_normalises(model, call) or call.input is None:
        return call
    fed_by = [
        other
        for other in candidates
        if other is not call and other.output.shape == call.input.shape and torch.equal(other.output, call.input)
    ]
    return _behind_norm(model, fed_by[0], candidates) if fed_by else call


def _by_mixing(
    model: nn.Module, block_call: Call, clean: Mapping[str, Tensor], ids: Tensor
) -> tuple[list[str], list[str]]:
    """Return the names of the modules that mix tokens (attention), and of the others (MLP).

    If none of several modules mixes tokens, attention may use the keys of an earlier block (Gemma 3n): then earlier
    tokens are perturbed from the embedding on. If all modules mix tokens, the MLP follows a short convolution or token
    shift (Inkling, RWKV): then the modules whose output does not depend on the first token are the MLP.

    Args:
        model: The model.
        block_call: The call of the block in the probe run.
        clean: The modules' outputs in that run [tokens, width], by name.
        ids: Token ids of the probe run.
    """

    def depending_on(tokens: range, at_block: bool = True) -> list[str]:
        return [name for name in clean if _depends_on_tokens(model, block_call, clean, ids, name, tokens, at_block)]

    last = ids.shape[1] - 1
    mixing = depending_on(range(last))
    if not mixing and len(clean) > 1:
        mixing = depending_on(range(last), at_block=False)
    if len(mixing) == len(clean) > 1:
        mixing = depending_on(range(1)) or mixing
    return mixing, [name for name in clean if name not in mixing]


def _depends_on_tokens(
    model: nn.Module,
    block_call: Call,
    clean: Mapping[str, Tensor],
    ids: Tensor,
    name: str,
    tokens: range,
    at_block: bool,
) -> bool:
    """Check whether a module's output at the last token changes when the stream is perturbed at earlier tokens.

    The stream is perturbed at the block's input (`at_block`) or at the embedding. All other modules in `clean` are held
    at their clean outputs.
    """
    n_tokens = ids.shape[1]

    def perturb(stream: Tensor) -> Tensor:
        return perturbed(stream, tokens, token_dim(stream, n_tokens))

    def with_clean_last_token(stream: Tensor) -> Tensor:
        changed = stream.clone()
        last = changed.movedim(token_dim(stream, n_tokens), 0)[-1]
        if block_call.input is not None:
            last.copy_(block_call.input[-1].reshape(last.shape))
        return changed

    def hold(output: Tensor) -> Edit:
        # A copy is needed: some models add the residual to a module's output in place.
        return lambda activation: output.to(activation, copy=True).reshape(activation.shape)

    edits = {model.get_submodule(other): hold(output) for other, output in clean.items() if other != name}
    if not at_block:
        edits[model.get_input_embeddings()] = perturb  # type: ignore[operator]
    change = perturb if at_block else with_clean_last_token
    with editing_outputs(edits, n_tokens), add_stream_hook(model.get_submodule(block_call.name), change):
        moved = record_calls(model, [name], ids)[-1].output
    last, before = moved[-1].double(), clean[name][-1].double()
    return float((last - before).norm()) > 1e-3 * float(before.norm())
