"""LSTM and GRU with every dropout that has been made for them, drop-in for PyTorch's."""

from typing import Any

import torch

from dropkit._checks import Integer
from dropkit.nn.rates import Rate
from dropkit.nn.recurrent_base import RecurrentBase
from dropkit.nn.variants import variant

__all__ = ["GRU", "LSTM"]

_NO_PROJECTION = Integer(0, 0, "0", "PyTorch's GRU has no projections, only its LSTM.")


@variant(
    family="sequences",
    title="LSTM with dropout of inputs, states, updates and outputs, and zoneout",
    noise="Bernoulli",
    shared="steps, or none; gates, or none",
    acts_on="inputs, states, updates and outputs",
    dropped="0, or the old state",
    at_one="zeros, or the old state",
    evaluation="PyTorch's LSTM; zoneout takes its expectation",
    formula=r"""\begin{aligned}
(i_t, f_t, o_t, g_t) &= (\sigma, \sigma, \sigma, \tanh)\left(W_x d_x(x_t) + W_h d_h(h_{t-1}) + b\right) \\
\tilde c_t &= f_t \odot c_{t-1} + i_t \odot d_g(g_t), \quad \tilde h_t = o_t \odot \tanh \tilde c_t \\
c_t &= z_c \odot \tilde c_t + (1 - z_c) \odot c_{t-1}, \quad h_t = z_h \odot \tilde h_t + (1 - z_h) \odot h_{t-1} \\
y_t &= d_y(h_t), \quad d_k(v) = \frac{m_k \odot v}{1 - p_k}, \quad m_k \sim \mathrm{Bernoulli}(1 - p_k)
\end{aligned}""",
    symbol="p for dropout and z for zoneout, the probabilities of dropping and that the old state stays",
    use="In the place of torch.nn.LSTM wherever it overfits; recurrent_p or update_p first, zoneout for long memories.",
    rates=(0.25, 0.5, 0.1),
    inputs=((3, 7, 5),),
    example=lambda p: LSTM(5, 4, batch_first=True, recurrent_p=p),
    shown=lambda p: LSTM(
        8, 8, batch_first=True, input_p=p, recurrent_p=p, update_p=p, zoneout_c=p, zoneout_h=p, output_p=p
    ),
    shown_inputs=((3, 10, 8),),
    axes=("examples", "steps", "units"),
    is_layer=False,
)
class LSTM(RecurrentBase, torch.nn.LSTM):
    """A long short-term memory network with dropout of inputs, states, updates and outputs, and with zoneout.

    A drop-in replacement for `torch.nn.LSTM`, which it subclasses: same arguments in the same order, same parameters,
    same `state_dict`, packed sequences, projections. Without noise (in evaluation, and where all rates are 0)
    PyTorch's own kernels run. As PyTorch's, it is compiled where ``torch._dynamo.config.allow_rnn`` is true.

    In the formula, which is that of a layer, ``d_x`` is dropout at the rate `input_p`, ``d_h`` at `recurrent_p`,
    ``d_g`` at `update_p`, and ``d_y`` at `output_p` after the last layer and at `dropout` after the others, whose next
    layer reads ``y``; the last ``h`` and ``c`` are the states that are returned. A projection comes before zoneout,
    whose masks ``z_c`` and ``z_h`` are True where the new value is taken and False where the old one stays, which has
    probability `zoneout_c` or `zoneout_h`; evaluation puts their means in their place.

    One schedule over the whole module gives all rates that are not 0 the same value. To move one of them, or each by a
    schedule of its own, give `dropkit.schedules.RateScheduler` pairs such as ``(lstm, "recurrent_p")``.

    Noise costs most where steps run one by one in plain operations: beside PyTorch's layer without noise about three
    times with `proj_size`, and three to ten times in float16 and bfloat16. Long sequences of few, narrow examples cost
    about ten times, where 2000 steps of 4 examples have 32 units. Compiled for training, it is compiled anew for every
    number of steps, which takes the longer the more there are.
    ``torch.ao.quantization.quantize_dynamic`` goes by exact classes, so ``{torch.nn.LSTM}`` leaves this one as it is:
    load its `state_dict` into PyTorch's class first.

    All masks of a call are fields of one key, with rows for examples and steps, so an example's masks depend neither on
    the size of its batch nor on the length of the longest sequence in it. Masks are named like parameters:
    ``input_l0``, ``recurrent_l0_reverse``, ``update_l1``, ``zoneout_c_l0``, ``zoneout_h_l0``, ``dropout_l0`` (after
    layer 0) and ``output``; both directions share those of their input. They are batch-first: (batch, steps, units),
    with length 1 where steps share a draw; those of inputs and recurrent connections are (batch, 1 or 4 gates, units).

    Args:
        input_size: Number of features of the input.
        hidden_size: Number of units of a layer.
        num_layers: Number of layers. Default: 1.
        bias: Whether gates have biases. Default: True.
        batch_first: Whether input and output are (batch, steps, features) instead of (steps, batch, features).
            Default: False.
        dropout: Probability of dropping an element of the output of every layer but the last, at each step anew, in
            ``[0, 1]``, as all rates. Default: 0.
        bidirectional: Whether a second set of cells runs backwards. Default: False.
        proj_size: Size of the projected hidden state, less than `hidden_size`; 0 for none. Default: 0.
        device: Where parameters are made. Default: PyTorch's.
        dtype: Type of the parameters. Default: PyTorch's.
        input_p: Probability of dropping a feature of each layer's input, at all steps of a sequence. Both directions
            read the same masked input. Default: 0.
        recurrent_p: Probability of dropping a unit of the hidden state where it enters the gates, at all steps of a
            sequence; the state itself stays whole. Default: 0.
        output_p: Probability of dropping a feature of the last layer's output, at all steps of a sequence; the
            returned states stay whole. Default: 0.
        update_p: Probability of dropping a unit of the candidate ``g``, which is added to the memory. Default: 0.
        zoneout_c: Probability that a unit of the cell state stays at its old value at a step. Default: 0.
        zoneout_h: Probability that a unit of the hidden state stays at its old value at a step. Default: 0.
        tied: Whether all gates share the masks of `input_p` and `recurrent_p`; if not, each has its own. Default: True.
        update_mask: ``"step"`` draws masks of `update_p` at each step anew, ``"sequence"`` once. Default: ``"step"``.
        generator: Where keys are drawn, as for `dropkit.nn.Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a rate is no number in ``[0, 1]``, a size is too small or an option is unknown.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> network = dropkit.nn.LSTM(3, 4, batch_first=True, recurrent_p=0.25, zoneout_c=0.5)
        >>> output, (h, c), masks = network(torch.randn(2, 5, 3), key=7, return_masks=True)
        >>> output.shape, {name: tuple(mask.shape) for name, mask in masks.items()}
        (torch.Size([2, 5, 4]), {'recurrent_l0': (2, 1, 4), 'zoneout_c_l0': (2, 5, 4)})

    References:
        Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks",
        section 4 (`input_p`, `recurrent_p`, `output_p`; tied and untied weights). Semeniuta, Severyn and Barth (2016),
        "Recurrent dropout without memory loss", section 3 (`update_p`), whose p is the probability of dropping.
        Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville and Pal (2017), "Zoneout: regularizing
        RNNs by randomly preserving hidden activations", section 3 (`zoneout_c`, `zoneout_h`), whose z is the
        probability that the old state stays.
    """

    dropout = Rate()
    input_p = Rate()
    recurrent_p = Rate()
    output_p = Rate()
    update_p = Rate()
    zoneout_c = Rate()
    zoneout_h = Rate()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        input_p: float = 0.0,
        recurrent_p: float = 0.0,
        output_p: float = 0.0,
        update_p: float = 0.0,
        zoneout_c: float = 0.0,
        zoneout_h: float = 0.0,
        tied: bool = True,
        update_mask: str = "step",
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "proj_size": proj_size}
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "tied": tied}
        rates = {"dropout": dropout, "input_p": input_p, "recurrent_p": recurrent_p, "output_p": output_p}
        rates |= {"update_p": update_p, "zoneout_c": zoneout_c, "zoneout_h": zoneout_h}
        self._check_options(sizes, flags, rates, device, dtype, update_mask, generator)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )
        self._set_options(rates, generator, tied, update_mask)


@variant(
    family="sequences",
    title="GRU with dropout of inputs, states, updates and outputs, and zoneout",
    noise="Bernoulli",
    shared="steps, or none; gates, or none",
    acts_on="inputs, states, updates and outputs",
    dropped="0, or the old state",
    at_one="zeros, or the old state",
    evaluation="PyTorch's GRU; zoneout takes its expectation",
    formula=r"""\begin{aligned}
(r_t, u_t) &= \sigma\left(W_x d_x(x_t) + W_h d_h(h_{t-1}) + b\right) \\
n_t &= \tanh\left(W_n d_x(x_t) + b_n + r_t \odot (V_n d_h(h_{t-1}) + c_n)\right) \\
\tilde h_t &= (1 - u_t) \odot d_n(n_t) + u_t \odot h_{t-1} \\
h_t &= z \odot \tilde h_t + (1 - z) \odot h_{t-1} \\
y_t &= d_y(h_t), \quad d_k(v) = \frac{m_k \odot v}{1 - p_k}, \quad m_k \sim \mathrm{Bernoulli}(1 - p_k)
\end{aligned}""",
    symbol="p for dropout and z for zoneout, the probabilities of dropping and that the old state stays",
    use="In the place of torch.nn.GRU wherever it overfits; recurrent_p or update_p first.",
    rates=(0.25, 0.5, 0.1),
    inputs=((3, 7, 5),),
    example=lambda p: GRU(5, 4, batch_first=True, recurrent_p=p),
    shown=lambda p: GRU(8, 8, batch_first=True, input_p=p, recurrent_p=p, update_p=p, zoneout=p, output_p=p),
    shown_inputs=((3, 10, 8),),
    axes=("examples", "steps", "units"),
    is_layer=False,
)
class GRU(RecurrentBase, torch.nn.GRU):
    """A network of gated recurrent units with dropout of inputs, states, updates and outputs, and with zoneout.

    A drop-in replacement for `torch.nn.GRU`, which it subclasses: same arguments in the same order, same parameters and
    `state_dict`, packed sequences. All else, also what is said of schedules, speed and quantisation, is as in
    `dropkit.nn.LSTM`; there are three gates, and one state, so the masks of zoneout are ``zoneout_l0`` and so on.

    In the formula, which is that of a layer, ``d_x`` is dropout at the rate `input_p`, ``d_h`` at `recurrent_p`,
    ``d_n`` at `update_p`, and ``d_y`` at `output_p` after the last layer and at `dropout` after the others, whose next
    layer reads ``y``. The mask of the hidden state acts on what the recurrent weights multiply, inside the product with
    ``r``; where ``u`` carries the state over it is whole. Zoneout's mask ``z`` is True where the new value is taken
    and False where the old one stays, which has probability `zoneout`; evaluation puts its mean in its place.

    Args:
        input_size: Number of features of the input.
        hidden_size: Number of units of a layer.
        num_layers: Number of layers. Default: 1.
        bias: Whether gates have biases. Default: True.
        batch_first: Whether input and output are (batch, steps, features) instead of (steps, batch, features).
            Default: False.
        dropout: Probability of dropping an element of the output of every layer but the last, at each step anew, in
            ``[0, 1]``, as all rates. Default: 0.
        bidirectional: Whether a second set of cells runs backwards. Default: False.
        device: Where parameters are made. Default: PyTorch's.
        dtype: Type of the parameters. Default: PyTorch's.
        proj_size: 0, for PyTorch's GRU has no projections either.
        input_p: Probability of dropping a feature of each layer's input, at all steps of a sequence. Default: 0.
        recurrent_p: Probability of dropping a unit of the hidden state where it enters the gates, at all steps of a
            sequence; the state itself stays whole. Default: 0.
        output_p: Probability of dropping a feature of the last layer's output, at all steps of a sequence; the
            returned states stay whole. Default: 0.
        update_p: Probability of dropping a unit of the candidate ``n``. Default: 0.
        zoneout: Probability that a unit of the hidden state stays at its old value at a step. Default: 0.
        tied: Whether all gates share the masks of `input_p` and `recurrent_p`; if not, each has its own. Default: True.
        update_mask: ``"step"`` draws masks of `update_p` at each step anew, ``"sequence"`` once. Default: ``"step"``.
        generator: Where keys are drawn, as for `dropkit.nn.Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a rate is no number in ``[0, 1]``, a size is too small or an option is unknown.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> network = dropkit.nn.GRU(3, 4, update_p=0.5, zoneout=0.1)
        >>> output, h = network(torch.randn(5, 2, 3), key=7)
        >>> output.shape, h.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))

    References:
        Gal and Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks",
        section 4 (`input_p`, `recurrent_p`, `output_p`). Semeniuta, Severyn and Barth (2016), "Recurrent dropout
        without memory loss", section 3 (`update_p`). Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio,
        Courville and Pal (2017), "Zoneout: regularizing RNNs by randomly preserving hidden activations", section 3
        (`zoneout`), whose z is the probability that the old state stays.
    """

    dropout = Rate()
    input_p = Rate()
    recurrent_p = Rate()
    output_p = Rate()
    update_p = Rate()
    zoneout = Rate()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        input_p: float = 0.0,
        recurrent_p: float = 0.0,
        output_p: float = 0.0,
        update_p: float = 0.0,
        zoneout: float = 0.0,
        tied: bool = True,
        update_mask: str = "step",
        generator: torch.Generator | None = None,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "tied": tied}
        rates = {"dropout": dropout, "input_p": input_p, "recurrent_p": recurrent_p, "output_p": output_p}
        rates |= {"update_p": update_p, "zoneout": zoneout}
        _NO_PROJECTION.check("GRU", "proj_size", proj_size)
        self._check_options(sizes, flags, rates, device, dtype, update_mask, generator)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )
        self._set_options(rates, generator, tied, update_mask)
