"""The caches of the networks that a request asks, and what they save."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dit_moe.caching.methods import build_method
from dit_moe.caching.network import CachedNetwork, Method
from dit_moe.config import Config, ConfigError, ModelConfig
from dit_moe.config.caching import WatchedSettings
from dit_moe.diffusion.objective import Network
from dit_moe.models.dit import DiT
from dit_moe.plan.partial_flops import partial_flops
from dit_moe.sampling.evaluations import rows_of_evaluations
from dit_moe.sampling.request import Request


@dataclasses.dataclass(frozen=True)
class Cache:
    """That of one network."""

    model: ModelConfig
    method: Method
    rows: np.ndarray
    """How often an image is in the batch of each evaluation, 1 or 2: [E] int32."""

    def around(self, network: Network, images: int) -> Network:
        """What is asked in the network's place while a batch of so many images is drawn."""
        if not isinstance(network, DiT):
            raise ConfigError("step_cache is given with a network that is watched; allowed: none")
        rows = images * int(self.rows.max())
        return CachedNetwork(network, self.method, rows, self.model.image_shape)

    def flops(self) -> tuple[float, float] | None:
        """Operations an image takes, and takes without a cache; None: that depends on the image."""
        schedule = self.method.schedule
        if schedule is None:
            return None
        part_E = partial_flops(self.model, schedule.computed, gates=self.method.gates)
        whole_E = partial_flops(self.model, np.ones_like(schedule.computed), gates=False)
        return float(self.rows @ part_E), float(self.rows @ whole_E)


@dataclasses.dataclass(frozen=True)
class Caches:
    """Those of the network that draws, and of another that guides it."""

    own: Cache
    guide: Cache | None

    def around(self, network: Network, images: int) -> Network:
        """See `Cache.around`."""
        return self.own.around(network, images)

    def around_guide(self, images: int) -> Callable[[Network], Network]:
        """The same for the network that guides."""
        guide = self.guide
        return lambda network: network if guide is None else guide.around(network, images)


def open_caches(config: Config, request: Request, weaker: Config | None = None) -> Caches | None:
    """The caches that a request asks for; None: none, or one that leaves nothing out.

    Args:
      config: of the run.
      request: with its cache.
      weaker: with guidance `auto`, the config of the network that guides.

    Raises:
      ConfigError: the cache does not fit the steps or the model.
    """
    settings = request.cache
    if settings is None or settings.identity:
        return None
    guide = request.guidance.guide
    if isinstance(settings, WatchedSettings) and guide != "cfg":
        raise ConfigError(
            f"step_cache is {settings.name!r} with guidance {guide!r}, whose two networks would "
            "decide each for itself; allowed: with guidance 'cfg'"
        )
    own_E, guide_E = rows_of_evaluations(config.model, config.objective, request)
    model = config.model if weaker is None else weaker.model

    def build(model: ModelConfig, rows_E: np.ndarray) -> Cache:
        return Cache(model, build_method(settings, rows_E, model.units), rows_E)

    return Caches(build(config.model, own_E), build(model, guide_E) if len(guide_E) else None)


def sentence(computed: dict[str, object]) -> str:
    """What is computed, as of `told`, for the user."""
    full, share = computed["full_evaluations"], computed["share_of_flops"]
    if full is None or share is None:
        return "How many evaluations the cache computes depends on the images."
    return (
        f"The cache computes {full} of {computed['evaluations']} evaluations whole, and "
        f"{share:.0%} of the network's operations in all."
    )


def told(caches: Caches | None) -> dict[str, dict[str, object]]:
    """What is computed, ready for JSON; nothing where all is."""
    if caches is None:
        return {}
    found = [cache.flops() for cache in (caches.own, caches.guide) if cache is not None]
    known = [flops for flops in found if flops is not None]
    schedule = caches.own.method.schedule
    return {
        "computed": {
            "evaluations": len(caches.own.rows),
            "full_evaluations": None if schedule is None else int(schedule.full.sum()),
            "share_of_flops": sum(part for part, _ in known) / sum(whole for _, whole in known)
            if len(known) == len(found)
            else None,
        }
    }
