"""Reading and editing what modules take and return, for the length of a `with` block.

Modules return a tensor, a tuple, a list or a dict-like output; the activation is the first tensor in it.

Hooks and replaced forwards are global to a model. All of the engine's are placed here and act only in the thread that
placed them: a call of the same model from another thread computes what it would without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Edit = Callable[[Tensor], Tensor | None]
"""Takes an activation [rows, tokens, d_model]; returns its replacement, or None to leave it as it is."""

MASK = "attention_mask"
"""The argument by which modules take an attention mask."""

MaskEdit = Callable[[Tensor | None, Tensor], Tensor]
"""Takes the mask that a module is given [rows or 1, heads or 1, queries, keys], or None for a causal one, and the
module's stream; returns the mask's replacement."""


def first_tensor(output: Any) -> Tensor | None:
    """Return the activation in a module's output: the output itself, or the first tensor it holds."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def all_tensors(value: Any) -> list[Tensor]:
    """Return every tensor in a module's output or arguments, in order, in containers at any depth."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in all_tensors(item)]
    return []


def replace_first_tensor(output: Any, activation: Tensor) -> Any:
    """Return the output with its first tensor replaced; the given output is not changed."""
    if isinstance(output, Tensor):
        return activation
    items = list(output.values() if isinstance(output, Mapping) else output)
    items[next(number for number, item in enumerate(items) if isinstance(item, Tensor))] = activation
    return with_items(output, items)


def with_items(container: Any, items: Sequence[Any]) -> Any:
    """Return a mapping, named tuple, tuple or list of the container's type with these items in place of its own."""
    rebuild: Callable[..., Any] = type(container)
    if isinstance(container, Mapping):
        return rebuild(dict(zip(container, items, strict=True)))
    return rebuild(*items) if hasattr(container, "_fields") else rebuild(items)


def rows_first(stream: Tensor, stacked: bool) -> Tensor:
    """Return a residual stream as [rows, tokens, ...]; several stacked streams are [n, rows, tokens, ...] before."""
    return stream.movedim(0, 2) if stacked and stream.dim() == 4 else stream


def rows_second(stream: Tensor, stacked: bool) -> Tensor:
    """Undo `rows_first`."""
    return stream.movedim(2, 0) if stacked and stream.dim() == 4 else stream


def add_output_hook(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, args, output)` after each forward of the module in this thread."""
    return module.register_forward_hook(_in_this_thread(hook))


def add_input_hook(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, args, kwargs)` before each forward of the module in this thread."""
    return module.register_forward_pre_hook(_in_this_thread(hook), with_kwargs=True)


def add_stream_hook(module: nn.Module, edit: Edit, tokens: int | None = None) -> RemovableHandle:
    """Apply `edit` to the residual stream that the module takes before each of its forwards in this thread.

    With `tokens`, a stream with rows and tokens in one dimension is unfolded for the edit.
    """

    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        stream = stream_argument(args, kwargs)
        if stream is None:
            return None
        edited = edit(stream if tokens is None else _unfolded(stream, tokens))
        if edited is None:
            return None
        return replace_stream_argument(args, kwargs, edited if tokens is None else edited.reshape(stream.shape))

    return add_input_hook(module, hook)


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    thread = get_ident()

    def in_one_thread(*args: Any) -> Any:
        return hook(*args) if get_ident() == thread else None

    return in_one_thread


@contextmanager
def editing_outputs(edits: Mapping[nn.Module, Edit], tokens: int, stacked: bool = False) -> Iterator[None]:
    """Apply `edits` to the outputs of their modules until the `with` block ends.

    Args:
        edits: What to do with each module's activation. An edit must not write into the tensor it is given.
        tokens: Tokens per row. Modules that flatten rows and tokens into one dimension are unfolded for the edit.
        stacked: Whether activations of four dimensions are [n, rows, tokens, d_model]; edits see the rows first.
    """

    def hook_for(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            activation = first_tensor(output)
            if activation is None:
                return None
            edited = edit(rows_first(_unfolded(activation, tokens), stacked))
            if edited is None:
                return None
            return replace_first_tensor(output, rows_second(edited, stacked).reshape(activation.shape))

        return hook

    with ExitStack() as hooks:
        for module, edit in edits.items():
            hooks.enter_context(add_output_hook(module, hook_for(edit)))
        yield


@contextmanager
def editing_arguments(edits: Mapping[nn.Module, Edit], tokens: int) -> Iterator[None]:
    """Apply `edits` to the first tensors that their modules take until the `with` block ends.

    Modules that take rows and tokens in one dimension have them unfolded for the edit.
    """
    with ExitStack() as hooks:
        for module, edit in edits.items():
            hooks.enter_context(add_stream_hook(module, edit, tokens))
        yield


@contextmanager
def editing_masks(edits: Mapping[nn.Module, MaskEdit]) -> Iterator[None]:
    """Apply `edits` to the attention masks that their modules take until the `with` block ends."""

    def hook_for(edit: MaskEdit) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            stream = stream_argument(args, {name: value for name, value in kwargs.items() if name != MASK})
            return None if stream is None else (args, {**kwargs, MASK: edit(kwargs.get(MASK), stream)})

        return hook

    with ExitStack() as hooks:
        for module, edit in edits.items():
            hooks.enter_context(add_input_hook(module, hook_for(edit)))
        yield


def _unfolded(activation: Tensor, tokens: int) -> Tensor:
    return activation.reshape(-1, tokens, activation.shape[-1]) if activation.dim() == 2 else activation


def stream_argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the residual stream among a module's arguments: its first floating-point tensor."""
    candidates = (*args, kwargs.get("hidden_states"), *kwargs.values())
    return next((item for item in candidates if isinstance(item, Tensor) and item.is_floating_point()), None)


def replace_stream_argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with another residual stream; the given ones are not changed."""
    old = stream_argument(args, kwargs)
    return (
        tuple(stream if item is old else item for item in args),
        {key: stream if item is old else item for key, item in kwargs.items()},
    )


Forward = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Takes a module's number in the list, its own forward, and the arguments; returns the module's output."""


@contextmanager
def replacing_forward(modules: Sequence[nn.Module], forward: Forward) -> Iterator[None]:
    """Replace the forward of each module by `forward`, in this thread, until the `with` block ends."""
    thread = get_ident()

    def stand_in(number: int, own: Callable[..., Any]) -> Callable[..., Any]:
        def in_one_thread(*args: Any, **kwargs: Any) -> Any:
            return forward(number, own, args, kwargs) if get_ident() == thread else own(*args, **kwargs)

        return in_one_thread

    with setting_forward(modules, stand_in):
        yield


@contextmanager
def setting_forward(
    modules: Sequence[nn.Module], stand_in: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace each module's forward by what `stand_in` makes of its number and forward, until the `with` block ends.

    It is set on the instance, over what accelerate may have set there, so that a module whose own forward is not
    called loads no offloaded weights.
    """
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for number, module in enumerate(modules):
            replaced.append((module, module.__dict__.get("forward")))
            own = module.forward
            made: Any = stand_in(number, own)
            made.__wrapped__ = own
            module.forward = made
        yield
    finally:
        for module, instance_forward in reversed(replaced):
            if instance_forward is None:
                # An interrupt may have come before it was set.
                module.__dict__.pop("forward", None)
            else:
                module.forward = instance_forward
