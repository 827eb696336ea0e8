"""Reading and editing what a module returns, for the length of a `with` block.

Modules return a tensor, a tuple, a list or a dict-like output; the activation is the first tensor in it.

Hooks and replaced forwards are global to a model. All of them are placed here, and act in the thread that placed them
only: a call of the same model from another thread computes what it would without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Edit = Callable[[Tensor], Tensor | None]
"""Takes an activation [rows, tokens, d_model]; returns its replacement, or None to leave it as it is."""


def first_tensor(output: Any) -> Tensor | None:
    """The activation in a module's output: the output itself, or the first tensor it holds."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def all_tensors(value: Any) -> list[Tensor]:
    """Every tensor in a module's output or arguments, in order, whatever holds it."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in all_tensors(item)]
    return []


def replace_first_tensor(output: Any, activation: Tensor) -> Any:
    """The output with its first tensor replaced and everything else kept; the given output is not changed."""
    if isinstance(output, Tensor):
        return activation
    if isinstance(output, Mapping):
        key = next(key for key, item in output.items() if isinstance(item, Tensor))
        rebuild: Callable[[dict[Any, Any]], Any] = type(output)
        return rebuild({**output, key: activation})
    index = next(i for i, item in enumerate(output) if isinstance(item, Tensor))
    items = [*output[:index], activation, *output[index + 1 :]]
    if hasattr(output, "_fields"):
        return type(output)(*items)
    return type(output)(items)


def rows_first(stream: Tensor, stacked: bool) -> Tensor:
    """A residual stream as [rows, tokens, ...]; `stacked` says that several stand before it: [n, rows, tokens, ...]."""
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


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    thread = get_ident()

    def in_one_thread(*args: Any) -> Any:
        return hook(*args) if get_ident() == thread else None

    return in_one_thread


@contextmanager
def editing_outputs(edits: Mapping[nn.Module, Edit], tokens: int, stacked: bool = False) -> Iterator[None]:
    """Apply `edits` to the outputs of their modules until the block is left, however it is left.

    Args:
        edits: What to do with each module's activation. An edit must not write into the tensor it is given.
        tokens: Tokens per row. Modules that flatten rows and tokens into one dimension are unfolded for the edit.
        stacked: Whether activations of four dimensions are [n, rows, tokens, d_model]; edits see the rows first.
    """

    def hook_for(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            activation = first_tensor(output)
            if activation is None:
                return None
            shape = activation.shape
            if activation.dim() == 2:
                edited = edit(activation.reshape(-1, tokens, shape[-1]))
            else:
                edited = edit(rows_first(activation, stacked))
            if edited is None:
                return None
            return replace_first_tensor(output, rows_second(edited, stacked).reshape(shape))

        return hook

    handles = []
    try:
        for module, edit in edits.items():
            handles.append(add_output_hook(module, hook_for(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def editing_arguments(edits: Mapping[nn.Module, Edit], tokens: int) -> Iterator[None]:
    """Apply `edits` to the first tensor that their modules take, until the block is left, however it is left.

    Modules that take rows and tokens in one dimension have them unfolded for the edit.
    """

    def hook_for(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            taken = stream_argument(args, kwargs)
            if taken is None:
                return None
            folded = taken.reshape(-1, tokens, taken.shape[-1]) if taken.dim() == 2 else taken
            edited = edit(folded)
            return None if edited is None else replace_stream_argument(args, kwargs, edited.reshape(taken.shape))

        return hook

    handles = []
    try:
        for module, edit in edits.items():
            handles.append(add_input_hook(module, hook_for(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def stream_argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The residual stream among a module's arguments: its first floating-point tensor."""
    candidates = (*args, kwargs.get("hidden_states"), *kwargs.values())
    return next((item for item in candidates if isinstance(item, Tensor) and item.is_floating_point()), None)


def replace_stream_argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another residual stream; the given ones are not changed."""
    old = stream_argument(args, kwargs)
    return (
        tuple(stream if item is old else item for item in args),
        {key: stream if item is old else item for key, item in kwargs.items()},
    )


Forward = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Takes a module's number in the list, its own forward, and the arguments; returns the module's output."""


@contextmanager
def replacing_forward(modules: Sequence[nn.Module], forward: Forward) -> Iterator[None]:
    """Let `forward` stand in for the forward of each module, in this thread, until the block is left."""
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
    """Set what `stand_in` makes of each module's number and forward as its forward until the block is left.

    It is set on the instance, on top of what accelerate may have set there, so that a module that is not called
    through loads no offloaded weights.
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
