"""Sampling by Euler's method block by block, with whatever is kept in Python lists."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_moe.diffusion.integrate import start_noise
from dit_moe.models.parameters import functional
from dit_moe.models.trunk import fitting


class Plain:
    """Draws as a request says, without loops of JAX and without the code of the caches."""

    def __init__(self, config, parameters):
        self.config = config
        self.model = functional(config.model)(parameters)
        self.units = []
        for stack, segment in zip(self.model.trunk.segments, config.model.trunk, strict=True):
            graphdef, state = nnx.split(stack)
            for u in range(segment.repeats):
                unit = nnx.merge(graphdef, jax.tree.map(lambda p, u=u: p[u], state))
                self.units.append((unit, segment, u == 0))
        self.past = []
        """(number, rows, outputs of every block) of the evaluations that were computed."""

    def draw(self, key_N, y_N, request):
        self.request, self.past, self.counted = request, [], None
        steps, guidance = self.request.integration.steps, self.request.guidance
        times = np.linspace(1, 0, steps + 1).astype(np.float32)
        z = start_noise(key_N, self.config.model.image_shape)
        null_N = jnp.full_like(y_N, self.config.model.null_label)
        low, high = guidance.interval
        for number, (t, t_next) in enumerate(itertools.pairwise(times)):
            if guidance.scale != 1 and low <= t <= high:
                both = self.network(
                    jnp.concatenate([z, z]), t, jnp.concatenate([y_N, null_N]), number
                )
                strong, weak = jnp.split(both, 2)
                velocity = strong + (guidance.scale - 1) * (strong - weak)
            else:
                velocity = self.network(z, t, y_N, number)
            z = z + (t_next - t) * velocity
        return np.asarray(z)

    def network(self, z, t, y_N, number):
        t_N = jnp.full(len(y_N), t * self.config.objective.time_scale)
        cache, steps = self.request.cache, self.request.integration.steps
        if cache is None or cache.name in ("fora", "taylorseer"):
            return self.forecasting(z, t_N, y_N, number)
        if cache.name == "delta":
            return self.leaving_out(z, t_N, y_N, number, steps)
        sign = np.asarray(self.sign(z, t_N, y_N, cache.name == "first_block"), np.float64)
        change = np.abs(sign - self.seen).sum() / np.abs(self.seen).sum() if number else np.inf
        if cache.name == "teacache" and number:
            change = self.total + max(np.polyval(cache.coefficients, change), 0)
        full = number in (0, steps - 1) or change >= cache.threshold
        self.total = 0 if full else change
        if full or cache.name == "teacache":
            self.seen = sign
        start = int(cache.name == "first_block")
        return self.between(z, t_N, y_N, start, len(self.units), bool(full))

    def leaving_out(self, z, t_N, y_N, number, steps):
        """The last units, then the first ones."""
        cache, units = self.request.cache, len(self.units)
        length = max(round(cache.share * units), 1)
        late = (number // cache.every) * cache.every >= cache.switch * steps
        start, end = (0, length) if late else (units - length, units)
        return self.between(z, t_N, y_N, start, end, number % cache.every == 0)

    def between(self, z, t_N, y_N, start, end, full):
        """All units, or those outside of a range, of which what it did is kept."""
        self.counted = (self.counted or 0) + full
        kept = None if full else self.kept
        value, tokens, handed = self.outside(z, t_N, y_N, start, end, kept)
        if full:
            self.kept = (tokens[end] - tokens[start], handed[end])
        return value

    @functools.partial(jax.jit, static_argnums=(0, 4, 5))
    def outside(self, z, t_N, y_N, start, end, kept):
        x, given, grid = self.model.enter(z, t_N, y_N)
        tokens, handed, previous = [x], [{}], {}
        for number, (unit, segment, begins) in enumerate(self.units):
            if kept is not None and start <= number < end:
                if number == start:
                    x, previous = x + kept[0], kept[1]
                continue
            if begins:
                previous = fitting(previous, segment, x.shape[0] * x.shape[1])
            given = dataclasses.replace(given, previous=previous)
            x, routing, _ = unit(x, given)
            previous = routing.hand_on if routing is not None else previous
            tokens.append(x)
            handed.append(previous)
        return self.model.leave(x, given, grid), tokens, handed

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def sign(self, z, t_N, y_N, first_block):
        x, given, _ = self.model.enter(z, t_N, y_N)
        unit, segment, _ = self.units[0]
        if not first_block:
            return unit.blocks[0].first_input(x, given)
        previous = fitting({}, segment, x.shape[0] * x.shape[1])
        return unit(x, dataclasses.replace(given, previous=previous))[0] - x

    def forecasting(self, z, t_N, y_N, number):
        """FORA, which is order 0, TaylorSeer, or no cache."""
        cache, rows = self.request.cache, len(z)
        first = (
            {"fora": 1, "taylorseer": 2}[cache.name] if cache else self.request.integration.steps
        )
        last = number == self.request.integration.steps - 1 and cache and cache.name == "fora"
        due = number < first or number - self.past[-1][0] >= cache.every or last
        if due or rows > self.past[-1][1]:
            if self.past and rows > self.past[-1][1]:
                self.past = []  # nothing is known of the new rows
            value, outputs = self.whole(z, t_N, y_N)
            self.past.append((number, rows, jax.tree.map(np.asarray, outputs)))
            return value
        return self.known(z, t_N, y_N, self.forecast(number, rows, getattr(cache, "order", 0)))

    @functools.partial(jax.jit, static_argnums=0)
    def whole(self, z, t_N, y_N):
        x, given, grid = self.model.enter(z, t_N, y_N)
        outputs, previous = [], {}
        for unit, segment, begins in self.units:
            if begins:
                previous = fitting(previous, segment, x.shape[0] * x.shape[1])
            given = dataclasses.replace(given, previous=previous)
            for block in unit.blocks:
                x, routing, found = block.with_outputs(x, given)
                outputs.append((found.attention, found.feed_forward))
            previous = routing.hand_on if routing is not None else previous
        return self.model.leave(x, given, grid), outputs

    @functools.partial(jax.jit, static_argnums=0)
    def known(self, z, t_N, y_N, outputs):
        x, given, grid = self.model.enter(z, t_N, y_N)
        blocks = [block for unit, *_ in self.units for block in unit.blocks]
        for block, (attention, feed_forward) in zip(blocks, outputs, strict=True):
            parts = block.modulation(jax.nn.silu(given.condition))
            _, _, gate_a, _, _, gate_f = jnp.split(parts, 6, axis=-1)
            x = x + gate_a[:, None] * attention
            x = x + gate_f[:, None] * feed_forward
        return self.model.leave(x, given, grid)

    def forecast(self, number, rows, order):
        """By differences of differences, from the evaluations that were computed."""
        numbers = [n for n, _, _ in self.past]
        found = []
        for block in range(len(self.past[0][2])):
            parts = []
            for part in range(2):
                column = [outputs[block][part][:rows] for _, _, outputs in self.past]
                total, ahead = 0, number - numbers[-1]
                for i in range(min(order, len(column) - 1) + 1):
                    total = total + differences(column, numbers, i)[-1] * ahead**i / math.factorial(
                        i
                    )
                parts.append(total)
            found.append(tuple(parts))
        return found


def differences(column, numbers, order):
    """The order-th differences; each is of one evaluation fewer."""
    for _ in range(order):
        gaps = np.diff(numbers)[-(len(column) - 1) :]
        pairs = zip(column[1:], column[:-1], gaps, strict=True)
        column = [(new - old) / gap for new, old, gap in pairs]
    return column
