"""What the compiler is given: everything in a forward that is listened to was seen, or it runs as it was written.

Of calls in compiled code a function mode sees most, but not those inside of operators that take functions, such as
compiled checkpoints, nor all random operators. So random operators are added to those that modes see, and every graph
is looked through before it is compiled.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.wrap import tag_activation_checkpoint
from torch.utils.checkpoint import CheckpointPolicy

from dropkit.sites.interception.telling import warn

__all__ = [
    "begin_tracing",
    "called",
    "check_place",
    "end_tracing",
    "trace",
    "unwatch",
    "watch",
    "while_compiling",
]

# Functions that a mode is told of when they run, but not when they are compiled.
_UNSEEN = (
    torch.normal, torch.rand_like, torch.randint_like, torch.randn_like, torch.rrelu_, torch._sample_dirichlet,
    torch._standard_gamma, torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_,
)  # fmt: skip
_REASON = (
    "dropkit.sites: {what} draws random numbers where nothing in compiled code can give it a key, as inside of a "
    "compiled checkpoint or branch."
)
_CHECKPOINT = (
    "dropkit.sites: compiled activation checkpointing of an addressed model would not recompute its masks. Compile the "
    "model without fullgraph=True, and what is checkpointed runs as it was written."
)
_BRANCH = (
    "dropkit.sites: torch.{name} calls a part of an addressed model, and always compiles its functions, where nothing "
    "can be counted. Call that part before it, or close the handle."
)
_BRANCHES = ("cond", "while_loop", "map")
_plain: list[Callable[..., Any]] = []  # PyTorch's own, while ours is in its place
_added: list[Callable[..., Any]] = []


def while_compiling(function: Any) -> Any:
    """Let a function run while code that calls it is compiled, which sees its result, and that never changes."""
    function._dynamo_marked_constant = True  # as torch.compiler.assume_constant_result, which takes seconds to load
    return function


def called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a function of PyTorch that a mode was told of."""
    if function is Tensor.unflatten and torch.compiler.is_compiling():  # which the compiler takes as a method alone
        return args[0].unflatten(*args[1:], **kwargs)
    return function(*args, **kwargs)


def watch() -> None:
    """Look through all graphs from now on, if anything can be compiled."""
    if _plain or "torch._dynamo.output_graph" not in sys.modules:
        return
    from torch._dynamo.output_graph import OutputGraph
    from torch._dynamo.variables.torch import get_overridable_functions

    _plain.append(OutputGraph.call_user_compiler)
    OutputGraph.call_user_compiler = _checked  # type: ignore[method-assign]  # where PyTorch looks it up
    seen = get_overridable_functions()
    _added.extend(function for function in _UNSEEN if function not in seen)
    seen.update(_added)


def unwatch() -> None:
    """Leave PyTorch as it was."""
    if not _plain:
        return
    from torch._dynamo.output_graph import OutputGraph
    from torch._dynamo.variables.torch import get_overridable_functions

    if OutputGraph.call_user_compiler is _checked:  # else somebody else has put his own in its place
        OutputGraph.call_user_compiler = _plain[0]  # type: ignore[method-assign]  # as above
    get_overridable_functions().difference_update(_added)
    _plain.clear()
    _added.clear()


def trace(function: Callable[..., Any]) -> None:
    """Note a call that is seen in what is being compiled; leave the graph where it could not be compiled as it is."""
    _watch_tracing()
    if function is tag_activation_checkpoint:
        torch._dynamo.graph_break(msg=_CHECKPOINT)


def check_place() -> None:
    """Leave the graph where a forward begins inside of an operator that takes functions, and could not be counted."""
    name = _operator()
    if name == tag_activation_checkpoint._name:
        torch._dynamo.graph_break(msg=_CHECKPOINT)
    elif name in _BRANCHES:
        torch._dynamo.graph_break(msg=_BRANCH.format(name=name))


@while_compiling
def _operator() -> str:
    """Return the name of the innermost operator that takes the function which is being compiled, if one does."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    operator = getattr(InstructionTranslator.current_tx().output.current_tracer, "source_target", None)
    return getattr(operator, "_name", "")


@while_compiling
def _watch_tracing() -> None:
    """Look through what is being compiled, if nothing has asked for that before."""
    watch()


@while_compiling
def begin_tracing() -> None:
    """Note that an outermost forward begins in what is being compiled."""
    watch()
    _traced().begin()


@while_compiling
def end_tracing() -> None:
    """Note that an outermost forward has ended in what is being compiled."""
    _traced().end()


class _Traced:
    """Which nodes of a graph that is being made came in while forwards were listened to.

    Args:
        output: The graph, with all that the compiler knows of it.
    """

    def __init__(self, output: Any) -> None:
        from torch._dynamo.variables.torch_function import torch_function_mode_stack_state_mgr

        from dropkit.sites.interception.interceptor import Interceptor

        modes = [mode for mode in torch_function_mode_stack_state_mgr.stack if isinstance(mode, Interceptor)]
        self.output = output
        self.depth = sum(mode.counts is not None for mode in modes)  # forwards that had begun before
        self.before: set[fx.Node] = set()
        self.inside: set[fx.Node] = set()

    @classmethod
    def of(cls, output: Any) -> "_Traced":
        """Return what is known of a graph."""
        if not hasattr(output, "dropkit"):
            output.dropkit = cls(output)
        found: _Traced = output.dropkit
        return found

    def begin(self) -> None:
        """Note that an outermost forward begins, perhaps inside of that of another model."""
        if not self.depth:
            self.before = set(self.output.graph.nodes)
        self.depth += 1

    def end(self) -> None:
        """Note that it has ended."""
        self.inside = self.nodes()
        self.depth -= 1

    def nodes(self) -> set[fx.Node]:
        """Return the nodes."""
        return self.inside | (set(self.output.graph.nodes) - self.before if self.depth else set())


def _traced() -> _Traced:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return _Traced.of(InstructionTranslator.current_tx().output)


def _checked(self: Any, gm: fx.GraphModule, example_inputs: Any) -> Any:
    """Compile a graph, unless something in it draws a mask that was not seen."""
    inside = _Traced.of(self).nodes()
    hidden = next((what for node in gm.graph.nodes if node in inside for what in _draws(node)), None)
    if hidden is None:
        for node in inside:
            if node.target is torch.ops.dropkit.fold.default:  # of counts that will have gone on by the backward pass
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        return _plain[0](self, gm, example_inputs)
    from torch._dynamo.exc import SkipFrame, Unsupported

    reason, tracer = _REASON.format(what=hidden), self.root_tx
    if "torch/_higher_order_ops/" in Path(tracer.f_code.co_filename).as_posix():
        raise Unsupported(f"{reason} PyTorch always compiles this one: draw the mask before it.")
    if tracer.one_graph or getattr(tracer, "error_on_graph_break", False):  # which older ones have not
        raise Unsupported(f"{reason} Compile the model without fullgraph=True, and it runs as it was written.")
    warn(f"{reason} The function that calls it runs as it was written.")
    raise SkipFrame(reason)


def _draws(node: fx.Node) -> Iterator[str]:
    """Yield the names of functions by which a node of a graph, or a graph inside of it, draws masks."""
    if node.op == "get_attr":
        inner = getattr(node.graph.owning_module, str(node.target), None)
        if isinstance(inner, fx.GraphModule):
            for each in inner.graph.nodes:
                yield from _draws(each)
    function = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
    if node.op in ("call_function", "call_method") and _is_drawing(function, node):
        yield getattr(function, "__name__", str(function))


def _value(argument: Any) -> Any:
    """Return what a number is that compiled code was told of as one that changes; a graph is not used for others."""
    value = argument.meta.get("example_value") if isinstance(argument, fx.Node) else argument
    return value.node.hint if isinstance(value, torch.SymFloat | torch.SymInt) else value


def _is_drawing(function: Any, node: fx.Node) -> bool:
    from dropkit.sites.calls.functions import find_call
    from dropkit.sites.handwritten.draws import find_draw
    from dropkit.sites.interception.places import Frame, Place

    call = find_call(function, node.args, node.kwargs)
    if call is not None:
        rate = call.function.rate
        return call.is_active and (rate is None or _value(call.arguments.get(rate)) != 0)
    place = Place("", Frame(torch.nn.Identity(), "", 0), 0)
    draw = find_draw(function, node.args, node.kwargs, lambda: place)
    return draw is not None and draw.has_address and draw.kwargs.get("generator") is None
