"""Files that other tools read: they parse, and say what the rest of the project says."""

import argparse
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from dit_moe.commands import train
from dit_moe.config.files import load_file
from tests.processes import outside_of_make
from tests.test_wheel import PARTS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def documents(name: str) -> list:
    """What a YAML file holds."""
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def test_citation():
    (citation,) = documents("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert {"message", "title", "authors"} <= citation.keys()
    assert [paper["notes"] for paper in citation["references"]] == ["DiT", "DiT-MoE", "ProMoE"]
    readme = (ROOT / "README.md").read_text()
    for paper in citation["references"]:
        assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in readme


def test_the_changelog_has_this_version():
    assert f"\n## {PROJECT['version']} - " in (ROOT / "CHANGELOG.md").read_text()


def test_continuous_integration_takes_the_oldest_python_and_goals_of_make():
    (workflow,) = documents(".github/workflows/ci.yml")
    oldest = PROJECT["requires-python"].removeprefix(">=")
    jobs = workflow["jobs"]
    assert jobs["newest"]["strategy"]["matrix"]["python"][0] == oldest
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for line in lines:
        command = [*shlex.split(line), "--dry-run"]
        subprocess.run(command, cwd=ROOT, env=outside_of_make(), check=True, capture_output=True)
    assert {line.split()[1] for line in lines} == {"lint", "test", "test-floors", "test-slow"}


def test_hooks_pin_a_ruff_that_the_project_allows():
    (hooks,) = documents(".pre-commit-config.yaml")
    pinned = {
        requirement
        for repository in hooks["repos"]
        for hook in repository["hooks"]
        for requirement in hook["additional_dependencies"]
    }
    (requirement,) = pinned
    (floor,) = [r for r in PROJECT["optional-dependencies"]["dev"] if r.startswith("ruff>=")]
    assert version(requirement.removeprefix("ruff==")) >= version(floor.removeprefix("ruff>="))


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_the_container_holds_what_the_wheel_is_made_of():
    text = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall("^COPY (.*)$", text, re.M) for name in line.split()[:-1]]
    assert sorted(copied) == sorted(PARTS)
    (extra,) = re.findall(r"^ARG EXTRA=(\S+)$", text, re.M)
    assert extra in PROJECT["optional-dependencies"]


def test_examples_are_named_in_the_docs():
    text = (ROOT / "docs" / "scale.md").read_text()
    for path in (ROOT / "examples").iterdir():
        assert f"examples/{path.name}" in text


def test_slurm(monkeypatch):
    path = ROOT / "examples" / "slurm.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    check_training(path.read_text().replace("\\\n", " "), monkeypatch)


def test_kubernetes(monkeypatch):
    service, job = documents("examples/kubernetes.yaml")
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": name}
    (container,) = pod["containers"]
    (line,) = container["args"]
    assert f"--coordinator_address {name}-0.{name}:" in line
    assert f"--num_processes {job['spec']['completions']} " in line
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    check_training(line.replace("$JOB_COMPLETION_INDEX", "0"), monkeypatch)


def check_training(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command has these flags, and the config these fields."""

    def load(arguments: argparse.Namespace, overrides: list[str]) -> None:
        load_file(arguments.config, overrides)  # refuses what is no field

    monkeypatch.setattr(train, "run", load)
    (line,) = re.findall("dit-moe train (.*)", text)
    assert train.main(shlex.split(line)) == 0
