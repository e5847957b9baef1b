"""A folder of everything that commands read, tiny; and stubs where their long work would begin."""

import csv
import dataclasses
import json
import shutil
import zipfile
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from dit_moe.analysis.record import (
    Analysis,
    Finding,
    Information,
    Inputs,
    Layer,
    Paths,
    Prototypes,
    Settings,
)
from dit_moe.autoencoder.latent_space import LatentSpace, write_latent_space
from dit_moe.commands import prepare, sample
from dit_moe.config import ConfigError
from dit_moe.config.files import to_dict, to_json
from dit_moe.config.guidance import GuidanceConfig
from dit_moe.data.classes import Classes, write_classes
from dit_moe.data.sources import build_sources
from dit_moe.models.parameters import init_parameters
from dit_moe.pairs.start import pairs_config
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.ema_snapshots import save_snapshot
from dit_moe.runs.open_folder import write_tensors
from dit_moe.sampling.request import Request
from dit_moe.storage.records import write_record
from dit_moe.text.config import TextConfig, TextDataConfig, TextModelConfig
from dit_moe.text.data import load_pairs, vocabulary_of
from dit_moe.text.folder import VOCABULARY
from dit_moe.text.sampler import sampling_times
from dit_moe.text.step import fresh_state
from dit_moe.text.vocabulary import write_vocabulary
from tests.analysis.fresh_run import write_fresh_run
from tests.prepared_sets import AUTOENCODER, write_latents, write_pictures
from tests.tiny import PROMOE, tiny

FIXTURES = Path(__file__).parent.parent / "fixtures"
TEXTS = TextConfig(
    model=TextModelConfig(width=8, depth=1, heads=2, embedding_width=4),
    data=TextDataConfig(below=20),
)
CONFIG = tiny(dataclasses.replace(PROMOE, num_experts=2), post_hoc_ema=(0.05, 0.1))
_INFORMATION = Information(1.0, 0.1, 0.9, 0.5, 0.01)
_LAYER = Layer(
    block=1,
    load=(0.4, 0.6),
    entropy_bits=0.9,
    balance=0.9,
    effective_experts=1.9,
    busiest=0.6,
    experts_per_token=1.0,
    position=_INFORMATION,
    time=_INFORMATION,
    label=_INFORMATION,
    concentration_by_time=(0.1, None),
    position_share_by_time=(0.1, None),
    unconditional=0.1,
)
ANALYSIS = Analysis(
    name="tiny",
    workdir="run",
    step=0,
    settings=Settings(("training",), 10, tuple(range(10)), 2, 2, GuidanceConfig(), 0, "ema"),
    class_names=tuple("0123456789"),
    inputs={
        "training": Inputs(
            images=10,
            null_images=1,
            tokens=320,
            null_tokens=0.1,
            layers=(_LAYER,),
            coactivation_bits=(),
            coactivation_share=(),
            paths=Paths(320, 2, 0.9, 1.9, 0.9, 0.0),
        )
    },
    expert_similarity=(((1.0, 0.5), (0.5, 1.0)),),
    prototypes=Prototypes((((0.1,) * 10,) * 2,), (((0.1,) * 10,) * 2,)),
    findings=(Finding("Experts differ.", "training", "holds", "They do."),),
    pictures={},
)
TINY = """\
import dataclasses, json
from dit_moe.config.files import from_dict

def get_config(argument=""):
    return from_dict(json.loads({text!r}))
"""


def build(folder: Path) -> None:
    """Fills the folder."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    label = np.arange(12) % 10
    (folder / "tiny.py").write_text(TINY.format(text=json.dumps(to_dict(CONFIG))))
    (folder / "grid.toml").write_text('config = "tiny.py"\n[set]\nbudget.steps = 2\n')
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("no picture")
    (folder / "pairs.tsv").write_text("one\tun\ntwo\tdeux\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("no such file")

    run = write_fresh_run(folder / "run", CONFIG)
    average = init_parameters(CONFIG.model, jax.random.key(1))
    for step in (2, 4):
        save_snapshot(run, step, {str(width): average for width in CONFIG.train.post_hoc_ema})
    latent = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, channels=4))
    pairs = pairs_config(CONFIG, "edges")
    for name, config in (
        ("exported", CONFIG),
        ("dense", tiny(None)),
        ("of latents", latent),
        ("pairs", pairs),
    ):
        (folder / name).mkdir()
        parameters = jax.device_get(init_parameters(config.model, jax.random.key(0)))
        write_tensors(folder / name, parameters, config.model, ema=True)
        (folder / name / "config.json").write_text(to_json(config))
    space = LatentSpace(AUTOENCODER, mean=(0.0,) * 4, std=(2.0,) * 4)
    write_latent_space(folder / "of latents", space, resuming=False)
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["step", "loss", "moe/load/layer00/expert00"], [1, 0.5, 0.2], [2, 0.4, ""]]
        )
    (run / "samples").mkdir()
    Image.fromarray(image[0, :, :, 0]).save(run / "samples/step_00000002.png")
    result = {
        "metrics": {"fid": {"value": 1.0}, "per_class": {"mean": 2.0, "by_class": {"0": 2.0}}},
        "samples": {"num": 12, "drawn": {"guidance_scale": 1.5}},
        "features": {"name": "inception"},
        "notes": ["few"],
    }
    (run / "fid.json").write_text(json.dumps(result))
    shutil.copy(run / "fid.json", folder / "results.json")

    card = write_pictures(folder / "set", image, label)
    write_classes(run, Classes(card.classes, (2, 2, *[1] * 8)))
    (source,) = build_sources(CONFIG.data, CONFIG.model)
    (run / "data.json").write_text(json.dumps([source.digest]))
    write_record(folder / "analysis.json", ANALYSIS)
    latent = rng.standard_normal((4, 2, 2, 2, 4))
    write_latents(folder / "latents", latent, latent, label[:4])
    _write_pictures(folder / "pictures", image)
    _write_texts(folder / "texts")
    _write_zips(folder)
    np.savez(folder / "samples.npz", image, label)
    np.savez(folder / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(folder / "latent.npz", image.astype(np.float32), label)
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / "mask.png")
    for name in ("dit_tiny", "promoe_tiny"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(FIXTURES / f"{name}{suffix}", folder / f"{name[: -len('_tiny')]}{suffix}")
    save_file({"a": np.zeros((2, 3), np.float32)}, folder / "foreign.safetensors")
    (folder / "autoencoder").mkdir()
    description = json.loads((FIXTURES / "autoencoder_tiny.json").read_text())
    (folder / "autoencoder/config.json").write_text(json.dumps(description["config"]))
    shutil.copy(
        FIXTURES / "autoencoder_tiny.safetensors",
        folder / "autoencoder/diffusion_pytorch_model.safetensors",
    )

    with pytest.MonkeyPatch.context() as patch:
        stub(patch)
        drawn = [f"--output={folder / 'drawn'}", "--num_samples=3"]
        assert sample.main([f"--workdir={run}", *drawn]) == 0
        made = [f"--output={folder / 'prepared'}", "--autoencoder=none", "--image_size=8"]
        assert prepare.main([f"--input={folder / 'pictures.zip'}", *made, "--workers=1"]) == 0


def _write_texts(folder: Path) -> None:
    """A run on texts of random parameters at step 0."""
    vocabulary = vocabulary_of(TEXTS.data, load_pairs(TEXTS.data, "train"))
    with Checkpoints(folder, 1) as checkpoints:
        checkpoints.save(fresh_state(TEXTS, len(vocabulary)))
    (folder / "config.json").write_text(to_json(TEXTS))
    write_vocabulary(vocabulary, folder / VOCABULARY)


def _write_pictures(folder: Path, image: np.ndarray) -> None:
    for number, suffix in enumerate((".png", ".jpg", ".webp", ".gif", ".tif")):
        path = folder / f"class {number % 2}" / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[number, :, :, 0]).save(path)


def _write_zips(folder: Path) -> None:
    labels = {"labels": [["a/0.png", 0], ["a/1.png", 1]]}
    for name, extra in (("pictures.zip", {}), ("edm.zip", {"dataset.json": json.dumps(labels)})):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for number in range(2):
                archive.write(folder / "pictures/class 0/0.png", f"a/{number}.png")
            for member, text in extra.items():
                archive.writestr(member, text)


BEGINS = "the work would begin"


def _begin(*_: object, **__: object) -> Any:
    """What ends a command that has checked all it can."""
    raise ConfigError(BEGINS)


def _blank(sampler: object, parameters: Any, request: Request, batch_size: int, **rest: Any):
    """As `dit_moe.sampling.sampler.generate`: pictures of nothing."""
    if request.num_samples > 100:
        _begin()
    channels = parameters["patch_in.kernel"].shape[-2] // CONFIG.model.patch_size**2
    for first in range(rest.get("start", 0), request.num_samples, batch_size):
        number = min(batch_size, request.num_samples - first)
        yield np.zeros((number, 8, 8, channels), np.float32)


def _blank_pairs(config: object, request: Request, *_: object, **__: object) -> Any:
    """As `dit_moe.pairs.sampler.build_pairs_sampler`: pairs of nothing."""
    if request.num_samples > 100:
        _begin()
    return lambda parameters, key_N, *_: np.zeros((len(key_N), 2, 8, 8, 1), np.float32)


def _blank_texts(config: TextConfig, tokens: int, steps: int, **_: object) -> Any:
    """As `dit_moe.text.sampler.build_sampler`: empty texts."""
    sampling_times(config.diffusion.times, steps)
    shape = config.model.target_length
    return lambda parameters, source_NxS, key_N: jax.numpy.zeros((len(key_N), shape), int)


class _Here(Executor):
    """Does what it is given at once, in this process."""

    def __init__(self, *_: object, **__: object):
        pass

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _plain_features(image_NxHxWxC: np.ndarray) -> dict[str, np.ndarray]:
    return {"pool": image_NxHxWxC.reshape(len(image_NxHxWxC), -1)[:, :4].astype(np.float32)}


class _Extractor:
    name = "digits"
    description = {"network": "pixels"}  # noqa: RUF012

    def __call__(self, image_NxHxWxC: np.ndarray) -> dict[str, np.ndarray]:
        return _plain_features(image_NxHxWxC)


def _stop() -> None:
    raise KeyboardInterrupt


STUBS = {
    # It would last for the tests that follow.
    "dit_moe.config.command_line.keep_no_programs": lambda: None,
    "dit_moe.training.session.init_state": _begin,
    "dit_moe.training.session.device_batches": _begin,
    "jax.distributed.initialize": _begin,
    "dit_moe.sampling.sampler.generate": _blank,
    "dit_moe.pairs.draw.build_pairs_sampler": _blank_pairs,
    "dit_moe.text.session.fresh_state": _begin,
    "dit_moe.text.writer.build_sampler": _blank_texts,
    "dit_moe.sampling.run_sampler.function_evaluations": lambda *_: 1,
    "dit_moe.sampling.caches.rows_of_evaluations": lambda *_: (np.ones(9, int), np.ones(0, int)),
    "dit_moe.sampling.calibration.changes": lambda *_: (np.arange(9.0), np.arange(9.0)),
    "dit_moe.sampling.rendering.decode_tiled": _begin,
    "dit_moe.play.serve.need_gradio": lambda: None,
    "dit_moe.play.serve.served": _begin,
    "dit_moe.surgery.cut.batches": _begin,
    "dit_moe.analysis.analyse.count_training": _begin,
    "dit_moe.analysis.analyse.count_sampling": _begin,
    "dit_moe.placement.place.decided": _begin,
    "dit_moe.data.prepare.local.ProcessPoolExecutor": _Here,
    "eval.judge.load_extractor": lambda *_, **__: _Extractor(),
    "eval.follow.wait": _stop,
    # No network: as if the hub did not answer.
    "huggingface_hub.snapshot_download": _begin,
    "huggingface_hub.hf_hub_download": _begin,
    "huggingface_hub.HfApi": _begin,
}


def stub(patch: pytest.MonkeyPatch) -> None:
    """Puts the stubs in place."""
    for name, stand_in in STUBS.items():
        patch.setattr(name, stand_in)
