"""Reading and editing the inputs and outputs of modules until a `with` block ends.

Modules return a tensor, a tuple, a list or a dict-like output. The activation is the first tensor in the output.

Hooks and replaced forwards belong to a model, not to a thread. The engine adds all of its own here, and each acts only
in the thread that added it: calls of the same model from other threads are not affected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Edit = Callable[[Tensor], Tensor | None]
"""A function from an activation [rows, tokens, d_model] to its replacement, or to None to keep the activation."""

MASK = "attention_mask"
"""The name of the argument with a module's attention mask."""

MaskEdit = Callable[[Tensor | None, Tensor], Tensor]
"""A function from a module's attention mask [rows or 1, heads or 1, queries, keys] (None for a causal mask) and its
input stream to the mask's replacement."""


def first_tensor(output: Any) -> Tensor | None:
    """Return the activation in a module's output: the output itself if it is a tensor, else the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def all_tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a module's output or arguments, in order, including those in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in all_tensors(item)]
    return []


def replace_first_tensor(output: Any, activation: Tensor) -> Any:
    """Return a copy of a module's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return activation
    items = list(output.values() if isinstance(output, Mapping) else output)
    items[next(number for number, item in enumerate(items) if isinstance(item, Tensor))] = activation
    return with_items(output, items)


def with_items(container: Any, items: Sequence[Any]) -> Any:
    """Return a container of the same type (mapping, named tuple, tuple or list) with other items."""
    rebuild: Callable[..., Any] = type(container)
    if isinstance(container, Mapping):
        return rebuild(dict(zip(container, items, strict=True)))
    return rebuild(*items) if hasattr(container, "_fields") else rebuild(items)


def rows_first(stream: Tensor, stacked: bool) -> Tensor:
    """Return a residual stream with rows first: [n, rows, tokens, ...] becomes [rows, tokens, n, ...]."""
    return stream.movedim(0, 2) if stacked and stream.dim() == 4 else stream


def streams_first(stream: Tensor, stacked: bool) -> Tensor:
    """Return a stream in the model's layout again, with stacked streams first; the inverse of `rows_first`."""
    return stream.movedim(2, 0) if stacked and stream.dim() == 4 else stream


def add_output_hook(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, args, output)` after each forward of the module in this thread."""
    return module.register_forward_hook(_in_this_thread(hook))


def add_input_hook(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Call `hook(module, args, kwargs)` before each forward of the module in this thread."""
    return module.register_forward_pre_hook(_in_this_thread(hook), with_kwargs=True)


def add_stream_hook(module: nn.Module, edit: Edit, tokens: int | None = None) -> RemovableHandle:
    """Apply `edit` to the residual stream that a module takes, before each forward of the module in this thread.

    If `tokens` is given, a stream [rows * tokens, d_model] is passed to the edit as [rows, tokens, d_model].
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
        edits: The edit of each module's activation. An edit must not write into the tensor it is given.
        tokens: Tokens per row. An output [rows * tokens, d_model] is passed to the edit as [rows, tokens, d_model].
        stacked: Whether activations of four dimensions are [n, rows, tokens, d_model]. Edits get them with rows first.
    """

    def hook_for(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            activation = first_tensor(output)
            if activation is None:
                return None
            edited = edit(rows_first(_unfolded(activation, tokens), stacked))
            if edited is None:
                return None
            return replace_first_tensor(output, streams_first(edited, stacked).reshape(activation.shape))

        return hook

    with ExitStack() as hooks:
        for module, edit in edits.items():
            hooks.enter_context(add_output_hook(module, hook_for(edit)))
        yield


@contextmanager
def editing_inputs(edits: Mapping[nn.Module, Edit], tokens: int) -> Iterator[None]:
    """Apply `edits` to the input streams of their modules until the `with` block ends.

    An input [rows * tokens, d_model] is passed to the edit as [rows, tokens, d_model].
    """
    with ExitStack() as hooks:
        for module, edit in edits.items():
            hooks.enter_context(add_stream_hook(module, edit, tokens))
        yield


@contextmanager
def editing_masks(edits: Mapping[nn.Module, MaskEdit]) -> Iterator[None]:
    """Apply `edits` to the attention masks of their modules until the `with` block ends."""

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
    """Return a copy of a module's arguments with the residual stream replaced."""
    old = stream_argument(args, kwargs)
    return (
        tuple(stream if item is old else item for item in args),
        {key: stream if item is old else item for key, item in kwargs.items()},
    )


Forward = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""A function from a module's number in the list, its original forward, and the arguments to the module's output."""


@contextmanager
def replacing_forward(modules: Sequence[nn.Module], forward: Forward) -> Iterator[None]:
    """Replace the forward of each module by `forward`, in this thread only, until the `with` block ends."""
    thread = get_ident()

    def make_forward(number: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def in_one_thread(*args: Any, **kwargs: Any) -> Any:
            return forward(number, original, args, kwargs) if get_ident() == thread else original(*args, **kwargs)

        return in_one_thread

    with setting_forward(modules, make_forward):
        yield


@contextmanager
def setting_forward(
    modules: Sequence[nn.Module], make_forward: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace each module's forward, in all threads, until the `with` block ends.

    The new forward is set on the instance, over the one that accelerate may have set there. So a module whose original
    forward is not called loads no offloaded weights.

    Args:
        modules: The modules.
        make_forward: Returns the new forward, from a module's number in the list and its original forward.
    """
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for number, module in enumerate(modules):
            replaced.append((module, module.__dict__.get("forward")))
            original = module.forward
            new: Any = make_forward(number, original)
            new.__wrapped__ = original
            module.forward = new
        yield
    finally:
        for module, instance_forward in reversed(replaced):
            if instance_forward is None:
                # An interrupt may have come before the new forward was set.
                module.__dict__.pop("forward", None)
            else:
                module.forward = instance_forward
