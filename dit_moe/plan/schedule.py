"""In how many rounds tokens should travel to their experts, so that links and arithmetic overlap.

FSMoE's model (2501.10714): the rows of a layer are cut into r parts, each of which is exchanged,
gathered, computed, scattered and exchanged back, on three streams that run beside each other: links
between hosts, links inside of one, and arithmetic. An operation on one of r parts takes
`alpha + amount beta / r`. The gradients of the layer before may be summed over the links between
hosts in the meantime. Links first carry all parts there, then gradients, then all parts back; the
time of the whole is then the largest of four (`cases`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

MOST_ROUNDS = 64


class Operation(NamedTuple):
    """What one operation on all rows of a device takes, cut into parts."""

    alpha: float = 0.0
    """Seconds of each part, whatever its size."""
    beta: float = 0.0
    """Seconds for one unit of the amount."""
    amount: float = 0.0
    """Of all parts, such as bytes; 0: there is no such operation."""

    def seconds(self, parts: float) -> float:
        """What one of so many parts takes."""
        return self.alpha + self.amount * self.beta / parts if self.amount else 0.0


class Layer(NamedTuple):
    """The operations of one layer, in one direction of differentiation."""

    exchange: Operation
    """Rows to the experts' hosts, or back: the mean of the two."""
    experts: Operation
    gather: Operation = Operation()
    """Rows inside a host, before the experts."""
    scatter: Operation = Operation()
    """The same after them."""


class Choice(NamedTuple):
    """How many rounds are best."""

    rounds: int
    case: int
    """Which of the four times is the largest for the first layer, from 1."""
    seconds: float
    """Of all layers, with the gradients that find no room."""


def cases(layer: Layer, rounds: float, gradients: float = 0.0) -> tuple[float, ...]:
    """The four times of which the largest is that of the layer.

    1: links between hosts are never idle, since gradients fill them. 2: arithmetic never is. 3:
    links between hosts have rows all the time, but for the first part's way inside. 4: links
    inside hosts are never idle.

    Args:
      layer: its operations.
      rounds: r.
      gradients: seconds that gradients need of the links between hosts.
    """
    a2a, compute = layer.exchange.seconds(rounds), layer.experts.seconds(rounds)
    inside = layer.gather.seconds(rounds) + layer.scatter.seconds(rounds)
    return (
        2 * rounds * a2a + gradients,
        2 * a2a + inside + rounds * compute,
        2 * rounds * a2a + inside,
        2 * a2a + rounds * inside,
    )


def room(layer: Layer, rounds: int) -> float:
    """Seconds of gradients that cost nothing: while links between hosts would be idle."""
    return max(cases(layer, rounds)) - 2 * rounds * layer.exchange.seconds(rounds)


def choose(layers: Sequence[Layer], gradients: Sequence[float] = ()) -> Choice:
    """The number of rounds, alike for all layers, in which their sum is least.

    Each of the four times is A r + B / r + C, so that the sum over layers of the largest, and what
    of the gradients finds no room, are convex: the least is found by halving.

    Args:
      layers: of the network, in the order of this direction.
      gradients: seconds of the links between hosts that the gradients need that are ready when each
        layer begins; empty: none.
    """

    ready = gradients if len(gradients) else [0.0] * len(layers)

    def total(rounds: int) -> float:
        times = sum(max(cases(layer, rounds)) for layer in layers)
        return times + split([room(layer, rounds) for layer in layers], ready)[1]

    low, high = 1, MOST_ROUNDS
    while low < high:
        middle = (low + high) // 2
        if total(middle) <= total(middle + 1):
            high = middle
        else:
            low = middle + 1
    times = cases(layers[0], low, ready[0])
    return Choice(low, 1 + times.index(max(times)), total(low))


def split(rooms: Sequence[float], gradients: Sequence[float]) -> tuple[list[float], float]:
    """How many seconds of gradients each layer hides, and what is left at the end.

    Greedy, which is best where rooms are given: what is not hidden early finds room later or costs
    its time.

    Args:
      rooms: of the layers, in the order of the backward pass.
      gradients: seconds that the gradients need that are ready when each layer begins.
    """
    backlog, hidden = 0.0, []
    for free, ready in zip(rooms, gradients, strict=True):
        backlog += ready
        hidden.append(min(backlog, max(free, 0.0)))
        backlog -= hidden[-1]
    return hidden, backlog


def fit(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """alpha and beta of a linear cost, by least squares of the relative errors, neither negative.

    Args:
      amounts: of single calls, two or more different ones.
      seconds: what each took.
    """
    amount_N, second_N = np.asarray(amounts, float), np.asarray(seconds, float)
    if len(np.unique(amount_N)) < 2 or (second_N <= 0).any():
        raise ValueError("a line takes two different amounts, and times above 0")
    scale = amount_N.max()
    columns_Nx2 = np.stack([np.ones_like(amount_N), amount_N / scale], axis=1) / second_N[:, None]
    (alpha, beta), _ = nnls(columns_Nx2, np.ones_like(second_N))
    return float(alpha), float(beta / scale)
