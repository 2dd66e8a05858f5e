"""A release that publishes: made, proven, sent to a Hub on this machine, and verified by somebody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.hub_server import files_of

pytestmark = pytest.mark.slow


@pytest.fixture
def write(checkpoint_factory: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``write(first, second)``: two models to GGUF, each with lines of its own, in the file ``r.toml``."""

    def written(first: str, second: str) -> Path:
        tables = [
            f'[[models]]\nmodel = "{checkpoint_factory(name)}"\nname = "{name}"\n{own}'
            for name, own in (("text", first), ("gemma3-text", second))
        ]
        head = 'output = "out"\n[defaults]\ntargets = ["gguf"]\n[defaults.validation]\npositions = 64\n'
        head += '[defaults.publish.card]\nquantized_by = "us"\n'
        (tmp_path / "r.toml").write_text("\n".join([head, *tables]), "utf-8")
        return tmp_path / "r.toml"

    return written


def to(repo: str, more: str = "") -> str:
    return f'[models.publish]\nrepo = "{repo}"\n{more}\n'


def test_every_model_is_published_once_and_verified_by_somebody_else(hub, as_writer, write, tmp_path):
    path = write(to("owner/a", 'tag = "v1"'), to("owner/b"))
    dry = as_writer("release", path, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "to publish: text to owner/a (a new repository)" in dry.stdout
    assert hub.repositories == {}
    done = as_writer("release", path)
    assert done.returncode == 0, done.stderr
    assert (
        f"text to owner/a: published ({hub.endpoint}/owner/a/commit/{hub.commit('owner/a')})" in done.stdout
    )
    assert hub.storage_of.tags == {("owner/a", "v1"): hub.commit("owner/a")}
    for repo in ("owner/a", "owner/b"):
        assert as_writer("verify", repo, token=None).returncode == 0
    (card,) = (file for name, file in files_of_head(hub, "owner/a").items() if name == "README.md")
    assert "quantized_by: us" in card.read_text("utf-8")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("release.json", "summary.md")}
    again = as_writer("release", path)
    assert again.returncode == 0, again.stderr
    assert len(hub.storage_of.messages) == 2
    told = json.loads((tmp_path / "out" / "release.json").read_text())["publications"]
    assert [(one["repo"], one["status"]) for one in told] == [
        ("owner/a", "published"),
        ("owner/b", "published"),
    ]
    assert told[0]["commit"] == json.loads(before["release.json"])["publications"][0]["commit"]


def test_an_artifact_that_fails_blocks_its_repository_and_no_other(hub, as_writer, write, tmp_path):
    path = write(to("owner/a") + "[models.validation.gates]\nmean_kld = 0.0\n", to("owner/b"))
    done = as_writer("release", path)
    assert done.returncode == 3, done.stderr
    assert hub.repositories.keys() == {"owner/b"}
    assert "text to owner/a: blocked (not all of its artifacts passed)" in done.stdout
    assert "text to owner/a: **blocked**" in (tmp_path / "out" / "summary.md").read_text("utf-8")
    suites = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    (case,) = suites.findall(".//testcase[@classname='text'][@name='publish']")
    assert case.find("skipped") is not None


def test_a_repository_that_cannot_be_written_is_found_before_anything_is_made(
    hub, as_writer, error_of, write, tmp_path
):
    path = write(to("owner/a"), to("somebody/b"))
    line = error_of(as_writer("release", path)).partition("qatconvert: ")[2]
    assert line.startswith("somebody/b: there is no such repository, and the token may not make one")
    assert not (tmp_path / "out" / "text").exists()
    assert hub.repositories == {}
    dry = as_writer("release", path, "--dry-run", "--json")
    found = {one["repo"]: one["error"] for one in json.loads(dry.stdout)["publications"]}
    assert found["owner/a"] is None
    assert "the token may not make one" in found["somebody/b"]


def test_a_publication_that_fails_is_an_error_of_its_own(hub, as_writer, write, tmp_path):
    hub.failing["/owner/a/commit/"] = (500, -1)
    done = as_writer("release", write(to("owner/a"), to("owner/b")))
    assert done.returncode == 1
    told = json.loads((tmp_path / "out" / "release.json").read_text())["publications"]
    assert [one["status"] for one in told] == ["error", "published"], told
    assert told[0]["error"].endswith("(500 Internal Server Error): try again later")
    hub.failing.clear()
    assert as_writer("release", tmp_path / "r.toml").returncode == 0
    assert as_writer("verify", "owner/a").returncode == 0


def test_nothing_is_asked_of_the_hub_where_nothing_is_to_be_published(hub, as_writer, write):
    done = as_writer("release", write(to("somebody/a"), ""), "--no-publish", token=None)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (to("owner/b"), "models[1].publish.repo is that of models[0] too"),
        (to("nowhere"), "models[0].publish.repo is 'nowhere', which is no repository: give OWNER/NAME"),
        ("[models.publish]\nprivate = true\n", "models[0].publish.repo is missing: give OWNER/NAME"),
        (to("owner/a", "privat = true"), "models[0].publish.privat is no key here (did you mean private?)"),
        (to("owner/a", "private = 1"), "models[0].publish.private is an integer, expected true or false"),
        (to("owner/a", 'create_pr = true\ntag = "x"'), "models[0].publish.tag has no effect with create_pr"),
        (to("owner/a", "card.licence = 'x'"), "models[0].publish.card.licence is no key here"),
        (
            to("owner/a", "card.tags = 'x'"),
            "models[0].publish.card.tags is a string, expected a list of strings",
        ),
    ],
)
def test_a_destination_that_means_nothing_is_an_error_of_the_file(own, line, as_writer, error_of, write):
    found = error_of(as_writer("release", write(own, to("owner/b")), "--dry-run"), status=2)
    assert "r.toml:" in found
    assert line in found


def files_of_head(hub, repo: str) -> dict[str, Path]:
    repository = hub.repositories[repo]
    return files_of(repository.commits[repository.references["main"]])
