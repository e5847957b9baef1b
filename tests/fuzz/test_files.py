"""Files that are damaged, or that somebody wrote to do harm, for every command that reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.bounds import FEW, MANY, bounded
from tests.fuzz.commands import COMMANDS, check
from tests.fuzz.house import BEGINS
from tests.fuzz.mutations import spoil

LATENTS = ["--workdir=of latents", "--autoencoder=autoencoder"]
PREPARED = ["--config.data.source=prepared", "--config.data.path=set"]
DAMAGED = ["--max_rejected=1"]

# By command: more flags, and patterns of the files that it reads then.
READS: dict[str, list[tuple[list[str], list[str]]]] = {
    "train": [
        (PREPARED, ["set/*"]),
        (["--init_from=exported"], ["exported/*"]),
        (["--workdir=run"], ["run/*"]),
    ],
    "sample": [
        ([], ["run/*.json"]),
        (["--workdir=exported"], ["exported/*"]),
        (LATENTS, ["of latents/*", "autoencoder/*"]),
        (["--guidance=auto", "--guide=exported", "--guidance_scale=2"], ["exported/*"]),
        (["--steer=super_resolution", "--steer_images=samples.npz"], ["samples.npz"]),
        (["--steer=inpaint", "--steer_images=samples.npz", "--mask=mask.png"], ["mask.png"]),
        (["--output=drawn"], ["drawn/*"]),
    ],
    "calibrate": [([], ["run/*.json"]), (["--workdir=exported"], ["exported/*"])],
    "prepare": [
        (DAMAGED, ["pictures/*/*"]),
        ([*DAMAGED, "--input=pictures.zip"], ["pictures.zip"]),
        ([*DAMAGED, "--input=edm.zip"], ["edm.zip"]),
        (["--input=set", "--source=tfds"], ["set/*"]),
        (["--input=pictures.zip", "--output=prepared"], ["prepared/*"]),
        (["--autoencoder=autoencoder"], ["autoencoder/*.json"]),
    ],
    "preview": [([], ["set/*"]), (["--input=latents", "--autoencoder=autoencoder"], ["latents/*"])],
    "convert": [([], ["dit.safetensors", "dit.json"])],
    "export": [([], ["run/*.json"]), (["--workdir=exported"], ["exported/*"])],
    "upcycle": [([], ["dense/*"])],
    "cut": [([], ["dense/*"])],
    "aggregate": [([], ["run/*.json"])],
    "compress": [([], ["run/*.json"]), (["--workdir=exported"], ["exported/*"])],
    "analysis": [([], ["run/*.json"]), (["--data=set"], ["set/*"])],
    "place": [([], ["run/*.json"]), (["--data=set"], ["set/*"])],
    "report": [
        (["--analysis=.", "--results", "results.json"], ["*.json", "run/*", "run/samples/*"])
    ],
    "sweep": [([], ["grid.toml"]), (["--plan"], ["grid.toml"]), (["--report"], ["grid.toml"])],
    "play": [([], ["run/*.json"]), (LATENTS, ["of latents/*", "autoencoder/*"])],
    "text_train": [(["--data=pairs.tsv"], ["pairs.tsv"])],
    "text_sample": [([], ["texts/*.json", "text.txt"])],
    "text_eval": [(["--pairs=pairs.tsv"], ["texts/*.json", "pairs.tsv"])],
    "post_hoc_ema": [([], ["run/config.json", "run/ema_snapshots/4/*/*"])],
    "fid": [
        ([], ["samples.npz", "set/*"]),
        (["--samples=pictures", "--reference=statistics.npz"], ["pictures/*/*", "statistics.npz"]),
        (["--samples=pictures.zip"], ["pictures.zip"]),
    ],
    "digits": [([], ["samples.npz"])],
    "weights": [([], ["foreign.safetensors"])],
}


# Whole weights are a gigabyte; a run that was never trained has no optimizer to go on with.
REFUSED = [("weights", 0), ("train", 2)]


@pytest.fixture
def run(house, copy):
    def call(name: str, data: st.DataObject) -> None:
        more, patterns = data.draw(st.sampled_from(READS[name]))
        found = [p for pattern in patterns for p in house.glob(pattern) if p.is_file()]
        names = sorted(str(path.relative_to(house)) for path in found)
        try:
            done = spoil(copy.folder / data.draw(st.sampled_from(names)), data.draw)
            check(COMMANDS[name], [*COMMANDS[name].line, *more], copy, done)
        finally:
            copy.mend()

    return call


@pytest.mark.parametrize(("name", "number"), [(n, i) for n in READS for i in range(len(READS[n]))])
def test_whole_files_are_taken(copy, name, number):
    more, patterns = READS[name][number]
    said = check(COMMANDS[name], [*COMMANDS[name].line, *more], copy)
    assert not said or BEGINS in said or (name, number) in REFUSED
    for pattern in patterns:
        assert any(path.is_file() for path in copy.folder.glob(pattern)), pattern


@pytest.mark.parametrize("name", READS)
@bounded(max_examples=FEW)
@given(data=st.data())
def test_any_file(run, name, data):
    run(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", READS)
@bounded(max_examples=MANY)
@given(data=st.data())
def test_many_files(run, name, data):
    run(name, data)
