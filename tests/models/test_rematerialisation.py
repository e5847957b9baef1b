import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dit_moe.models.parameters import functional, init_parameters
from dit_moe.models.trunk import SHALLOW
from tests.tiny import DIT_MOE, PROMOE, tiny


@pytest.mark.parametrize("moe", [DIT_MOE, PROMOE])
def test_dispatch_runs_once_unless_whole_blocks_are_recomputed(moe):
    """Counts the sorts of the assignments and the loops over experts and blocks, in a scan."""

    def counts(remat: str) -> tuple[int, int]:
        model = dataclasses.replace(tiny(moe).model, remat=remat, depth=2 * (SHALLOW + 1))
        bind = functional(model)
        x, t, y = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, jnp.int32)

        def loss(parameters):
            return jnp.sum(bind(parameters)(x, t, y).value ** 2)

        parameters = init_parameters(model, jax.random.key(0))
        # Compiled, so that what nobody reads is gone.
        text = jax.jit(jax.grad(loss)).lower(parameters).compile().as_text()
        return text.count(" sort("), text.count(" while(")

    sorts, loops = counts("none")
    assert sorts == 1
    assert counts("dots") == (sorts, loops)
    assert counts("full") > (sorts, loops + 1)


def test_dots_computes_no_matrix_product_again():
    """Counts products: one backward pass more than forward where all is kept, so with `dots`."""

    def products(remat: str) -> int:
        model = dataclasses.replace(tiny(None).model, remat=remat)
        bind = functional(model)
        x, t, y = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, jnp.int32)

        def loss(parameters):
            return jnp.sum(bind(parameters)(x, t, y).value ** 2)

        text = str(jax.make_jaxpr(jax.grad(loss))(init_parameters(model, jax.random.key(0))))
        return text.count("dot_general[")

    # Scores of attention are computed again: many bytes, few operations.
    assert products("none") <= products("dots") <= products("none") + 1
    assert products("full") > products("dots") + 3
