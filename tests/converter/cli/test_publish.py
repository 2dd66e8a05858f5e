"""``qatconvert publish`` and ``verify OWNER/NAME``, by huggingface_hub's client, to a Hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from converter.demo import DEMO
from converter.pipeline.conversion import Conversion, convert
from support.altered_output import edit_manifest, list_again
from support.hub_server import HubServer, files_of
from support.hub_writing import READER, WRITER
from support.pages import ROOT

pytestmark = pytest.mark.slow

REPO = "owner/demo"
GGUF = "gemma4-demo-q4_0.gguf"
#: What a publication of the GGUF alone has, beside what the Hub makes.
FILES = {
    GGUF,
    "Modelfile",
    "README.md",
    "SHA256SUMS",
    "manifest.json",
    "report.html",
    "report.json",
    "report.md",
}


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proven conversion of the demo to GGUF; nobody may change it."""
    output = tmp_path_factory.mktemp("proven") / "out"
    settings = {"positions": 512}
    outcome = convert(Conversion(str(DEMO), ["gguf"], output, validation=settings), warn=lambda line: None)
    assert outcome.exit_status == 0
    return output


@pytest.fixture
def out(proven: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return shutil.copytree(proven, tmp_path / "out")


def held(hub: HubServer, reference: str = "main", repo: str = REPO) -> dict[str, Path]:
    """The files of a repository by name, but for what the Hub makes itself."""
    repository = hub.repositories[repo]
    found = files_of(repository.commits[repository.references[reference]])
    return {name: path for name, path in found.items() if name != ".gitattributes"}


def front_matter(card: Path) -> dict[str, Any]:
    found = yaml.safe_load(card.read_text("utf-8").split("---\n")[1])
    assert isinstance(found, dict)
    return found


def change(hub: HubServer, name: str, content: bytes | None) -> None:
    """A commit by somebody else: a file with another content, or without it."""
    repository = hub.repositories[REPO]
    head = repository.commits[repository.references["main"]]
    place = hub.storage_of.folder / f"other-{len(repository.commits)}"
    shutil.copytree(head, place)
    (place / name).unlink(missing_ok=True)
    if content is not None:
        (place / name).write_bytes(content)
    repository.publish(place)


def test_what_is_published_is_laid_out_for_clients_and_verified_by_somebody_else(
    hub, as_writer, out, tmp_path
):
    dry = as_writer("publish", out, "--repo", REPO, "--dry-run")
    assert (dry.returncode, hub.repositories) == (0, {}), dry.stderr
    assert "in one commit; the repository is made" in dry.stdout
    done = as_writer("publish", out, "--repo", REPO, "--tag", "v1", "--message", "First", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    files = held(hub)
    assert files.keys() == FILES == {one["path"] for one in told["files"]}
    assert {one["change"] for one in told["files"]} == {"new"}
    assert files[GGUF].read_bytes() == (out / "gguf" / GGUF).read_bytes()
    assert files["Modelfile"].read_text().startswith(f"FROM ./{GGUF}\n")
    assert hub.storage_of.messages == ["First"]  # one commit
    assert hub.storage_of.tags == {(REPO, "v1"): told["commit"]}
    # sha256sum knows the format
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=files[GGUF].parent, check=True)
    for name in (REPO, f"{REPO}@v1", f"{REPO}@{told['commit']}"):
        seen = as_writer("verify", name, token=None)
        assert seen.returncode == 0, seen.stdout + seen.stderr
        assert f"{REPO} at commit {told['commit']}: 5 files" in seen.stdout


def test_publishing_the_same_again_changes_nothing(hub, as_writer, out):
    first = as_writer("publish", out, "--repo", REPO)
    sent = list(hub.storage_of.sent)
    again = as_writer("publish", out, "--repo", REPO)
    assert (first.returncode, again.returncode) == (0, 0)
    assert "has all of it already" in again.stdout
    assert (len(hub.storage_of.messages), hub.storage_of.sent) == (1, sent)


def test_the_card_names_source_licence_fidelity_and_how_to_run_it(hub, as_writer, out):
    fields = ["--base-model", "google/x", "--quantized-by", "someone", "--card-tag", "tiny"]
    assert as_writer("publish", out, "--repo", REPO, *fields).returncode == 0
    card = held(hub)["README.md"]
    assert front_matter(card) == {
        "base_model": "google/x",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "quantized_by": "someone",
        "tags": ["qat", "quantized", "gguf", "qatconvert", "tiny"],
    }
    text = card.read_text("utf-8")
    report = json.loads((out / "report.json").read_text())["targets"]["gguf"]
    assert f"| mean KLD | {report['logits']['mean_kld']:.6f} |" in text
    for line in (f"--hf-repo {REPO} --hf-file {GGUF}", "ollama create demo", f"qatconvert verify {REPO}"):
        assert line in text


def test_what_people_wrote_in_a_card_stays(hub, as_writer, out):
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    text = held(hub)["README.md"].read_text("utf-8")
    theirs = text.replace("# gemma4-demo\n", "# Mine\n\nBy hand.\n") + "\n## Thanks\n"
    theirs = theirs.replace("license: apache-2.0", "license: mit\nthumbnail: x.png")
    change(hub, "README.md", theirs.replace("mean KLD", "meen KLD").encode())
    done = as_writer("publish", out, "--repo", REPO, "--json")
    assert done.returncode == 0, done.stderr
    assert [one["path"] for one in json.loads(done.stdout)["files"] if one["change"] != "same"] == [
        "README.md"
    ]
    card = held(hub)["README.md"]
    found = card.read_text("utf-8")
    assert "# Mine\n\nBy hand.\n" in found
    assert found.rstrip().endswith("## Thanks")
    assert "meen" not in found
    assert (front_matter(card)["license"], front_matter(card)["thumbnail"]) == ("mit", "x.png")


def test_front_matter_of_people_keeps_its_meaning(hub, as_writer, out):
    """``no`` is Norwegian, a licence has no other one's name, and their text stays to the byte."""
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    theirs = "---\nlicense: mit\nlanguage: no\ninference: false\n---\nOne\x0ctwo\u2028three\r\nfour"
    change(hub, "README.md", theirs.encode())
    edit_manifest(out, lambda content: content["source"]["card"].update(license_name="x", license_link="y"))
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    found = front_matter(held(hub)["README.md"])
    assert (found["license"], found["language"], found["inference"]) == ("mit", "no", False)
    assert not {"license_name", "license_link"} & found.keys()
    assert "\n\nOne\x0ctwo\u2028three\r\nfour\n\n" in held(hub)["README.md"].read_bytes().decode()
    assert as_writer("publish", out, "--repo", REPO, "--card-license", "other").returncode == 0
    assert front_matter(held(hub)["README.md"])["license"] == "other"


def test_a_hub_that_fails_is_not_taken_for_a_token_that_may_not_write(hub, as_writer, error_of, out):
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    hub.failing["/auth-check/"] = (503, -1)
    line = error_of(as_writer("publish", out, "--repo", REPO))
    assert line.endswith("(503 Service Unavailable): try again later")


def test_what_an_earlier_publication_had_is_removed_and_other_files_stay(
    hub, as_writer, out, proven, tmp_path
):
    shutil.copy(out / "gguf" / GGUF, out / "gguf" / "old.gguf")
    list_again(out, "gguf/old.gguf")
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    change(hub, "picture.png", b"png")
    done = as_writer("publish", proven, "--repo", REPO)
    assert done.returncode == 0, done.stderr
    assert held(hub).keys() == FILES | {"picture.png"}
    assert as_writer("verify", REPO).returncode == 0


def test_large_files_are_sent_in_parts_and_not_again_after_a_failure(hub, as_writer, out):
    hub.part_bytes = 1 << 20
    hub.failing["/commit/main"] = (500, -1)
    failed = as_writer("publish", out, "--repo", REPO)
    assert failed.returncode == 1
    assert failed.stderr.strip().endswith("(500 Internal Server Error): try again later")
    assert held(hub) == {}
    sent = list(hub.storage_of.sent)
    assert len(sent) == 1
    hub.failing.clear()
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    assert hub.storage_of.sent == sent
    assert held(hub)[GGUF].read_bytes() == (out / "gguf" / GGUF).read_bytes()


def test_a_head_that_moves_meanwhile_is_refused(hub, as_writer, error_of, out):
    assert as_writer("publish", out, "--repo", REPO, "--private").returncode == 0
    assert REPO in hub.private
    (out / "extra.txt").write_text("x")
    list_again(out, "extra.txt")
    hub.before_commit = lambda: change(hub, "theirs.txt", os.urandom(4))
    line = error_of(as_writer("publish", out, "--repo", REPO))
    assert "was changed by somebody else meanwhile, and nothing was published" in line
    assert "extra.txt" not in held(hub)


def test_a_pull_request_leaves_the_branch_as_it_is(hub, as_writer, error_of, out):
    line = error_of(as_writer("publish", out, "--repo", REPO, "--create-pr"))
    assert "there is no such repository" in line
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    before = hub.commit(REPO)
    (out / "extra.txt").write_text("x")
    list_again(out, "extra.txt")
    done = as_writer("publish", out, "--repo", REPO, "--create-pr", "--json")
    assert json.loads(done.stdout)["pull_request"] == f"{hub.endpoint}/{REPO}/discussions/2"
    assert hub.commit(REPO) == before
    assert "extra.txt" in held(hub, "refs/pr/2")


def refused_outputs() -> dict[str, tuple[Callable[[Path], object], str]]:
    def fail(out: Path) -> None:
        report = json.loads((out / "report.json").read_text())
        report["targets"]["gguf"]["passed"] = report["targets"]["gguf"]["gates"][0]["passed"] = False
        (out / "report.json").write_text(json.dumps(report))
        list_again(out, "report.json")

    def lose(out: Path) -> None:
        (out / "report.json").unlink()
        list_again(out, "report.json")

    def flip(out: Path) -> None:
        with (out / "gguf" / GGUF).open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x7f")

    def clash(out: Path) -> None:
        (out / "Modelfile").write_text("x")
        list_again(out, "Modelfile")

    return {
        "a failed gate": (
            fail,
            "the report says: gguf failed: see report.json, or publish it with --allow-failed",
        ),
        "no report": (lose, "gguf has no proof in report.json"),
        "another content": (flip, f"it is not as its manifest says: gguf/{GGUF} has SHA-256"),
        "a file that is not listed": (
            lambda out: (out / "x").write_text("x"),
            "x is a file that the manifest",
        ),
        "two of one name": (clash, "two files would be Modelfile in a repository: ollama/Modelfile"),
        "no manifest": (lambda out: (out / "manifest.json").unlink(), "has no manifest.json"),
        "a Modelfile that leads nowhere": (
            lambda out: ((out / "ollama" / "Modelfile").write_text("x"), list_again(out, "ollama/Modelfile")),
            "Modelfile",
        ),
    }


@pytest.mark.parametrize("case", refused_outputs())
def test_what_may_not_be_published_is_one_line_and_nothing_is_made(case, hub, as_writer, error_of, out):
    change, line = refused_outputs()[case]
    change(out)
    assert line in error_of(as_writer("publish", out, "--repo", REPO))
    assert hub.repositories == {}


def test_a_failed_gate_is_published_if_that_is_asked_for_and_the_card_says_so(hub, as_writer, out):
    refused_outputs()["a failed gate"][0](out)
    assert as_writer("publish", out, "--repo", REPO, "--allow-failed").returncode == 0
    text = held(hub)["README.md"].read_text("utf-8")
    assert "**Published although not all of it passed (gguf failed); see report.md.**" in text
    assert "**FAILED**" in text


@pytest.mark.parametrize(
    ("token", "repo", "line"),
    [
        (None, REPO, f"publishing to {REPO} needs a token that may write there"),
        ("hf_expired", REPO, "rejects the token: renew it"),
        (READER, "owner/other", "owner/other: the token may only read there"),
        (WRITER, "somebody/demo", "the token may not make one: it belongs to owner, not to somebody"),
        (WRITER, "owner/closed", "owner/closed: the token may only read there"),
    ],
)
def test_a_token_that_cannot_write_is_found_before_anything_is_read(
    token, repo, line, hub, as_writer, error_of, out
):
    hub.expired.add("hf_expired")
    hub.forbidden.add("owner/closed")
    (out / "gguf" / GGUF).unlink()  # which would be an error too, found later
    if repo == "owner/closed":
        (out.parent / "closed").mkdir()
        (out.parent / "closed" / "x").write_text("x")
        with HubServer({repo: out.parent / "closed"}) as other:
            hub.repositories.update(other.repositories)
    assert line in error_of(as_writer("publish", out, "--repo", repo, token=token))
    assert hub.storage_of.sent == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--repo", "demo"], "demo is no repository: --repo takes OWNER/NAME"),
        (["--repo", f"{REPO}@main"], "is no repository"),
        (["--repo", "gemma4-e2b"], "is no repository"),
        (["--repo", REPO, "--create-pr", "--tag", "v1"], "leave out one of them"),
        (
            ["--repo", REPO, "--create-pr", "--private"],
            "--private is for a repository that is yet to be made",
        ),
    ],
)
def test_options_that_mean_nothing_are_wrong_usage(options, line, as_writer, error_of, out):
    assert line in error_of(as_writer("publish", out, *options), status=2)


def test_a_tag_is_never_moved_and_a_public_repository_is_not_made_private(hub, as_writer, error_of, out):
    assert as_writer("publish", out, "--repo", REPO, "--tag", "v1").returncode == 0
    (out / "extra.txt").write_text("x")
    list_again(out, "extra.txt")
    assert f"{REPO} has a tag v1 already" in error_of(
        as_writer("publish", out, "--repo", REPO, "--tag", "v1")
    )
    assert f"{REPO} is public" in error_of(as_writer("publish", out, "--repo", REPO, "--private"))
    assert len(hub.storage_of.messages) == 1


def test_offline_nothing_is_published(as_writer, error_of, out):
    done = as_writer("publish", out, "--repo", REPO, environment={"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE forbids to publish" in error_of(done, status=2)


@pytest.mark.parametrize("name", sorted(FILES - {"README.md", "SHA256SUMS", "manifest.json"}))
def test_a_published_file_that_was_changed_is_found(name, hub, as_writer, out):
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    change(hub, name, f"another {name}".encode())
    done = as_writer("verify", REPO, "--json", token=None)
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"]) == (3, False)
    assert [one["path"] for one in found["differences"]] == [name]


@pytest.mark.parametrize("name", [GGUF, "Modelfile", "report.json"])
def test_a_file_that_was_changed_with_its_digest_is_not_as_the_manifest_says(name, hub, as_writer, out):
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    content = held(hub)[name].read_bytes().replace(b"1", b"2")
    digest = hashlib.sha256(content).hexdigest()
    sums = held(hub)["SHA256SUMS"].read_text().splitlines()
    edited = "".join(f"{digest}  {name}\n" if one.endswith(f"  {name}") else f"{one}\n" for one in sums)
    change(hub, name, content)
    change(hub, "SHA256SUMS", edited.encode())
    done = as_writer("verify", REPO)
    assert done.returncode == 3
    assert done.stdout.startswith(f"{name}: has ")


@pytest.mark.parametrize(
    ("name", "content", "status", "line"),
    [
        (GGUF, None, 3, f"{GGUF}: is missing"),
        ("more.gguf", b"x", 3, "more.gguf: is a file that SHA256SUMS does not list"),
        ("picture.png", b"x", 0, "5 files"),
        ("SHA256SUMS", None, 1, "has no SHA256SUMS: it was not published by qatconvert publish"),
        ("SHA256SUMS", b"nonsense\n", 1, "SHA256SUMS: line 1 is no digest with a name"),
        ("manifest.json", b"{}", 1, "this is no manifest of qatconvert"),
        ("manifest.json", None, 1, "has no manifest.json"),
    ],
)
def test_a_repository_that_was_changed_otherwise(name, content, status, line, hub, as_writer, out):
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    change(hub, name, content)
    done = as_writer("verify", REPO)
    assert done.returncode == status, done.stderr
    assert line in (done.stdout if status in (0, 3) else done.stderr)


def test_a_manifest_that_leads_out_of_the_repository_is_refused(hub, as_writer, error_of, out):
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    edit_manifest(
        out, lambda content: content["artifacts"].append({"path": "../x", "bytes": 1, "sha256": "0" * 64})
    )
    content = (out / "manifest.json").read_bytes()
    change(hub, "manifest.json", content)
    assert "../x" in error_of(as_writer("verify", REPO))


def test_a_published_repository_is_made_again_from_its_source(as_writer, out):
    assert as_writer("publish", out, "--repo", REPO).returncode == 0
    done = as_writer("verify", REPO, "--rebuild", "--reference", DEMO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "converted again: the same bytes in 2 files" in done.stdout


def test_the_commands_of_the_page_do_what_it_says(hub, as_writer, proven, tmp_path):
    hub.user = "OWNER"
    page = (ROOT / "docs" / "publishing.md").read_text("utf-8")
    conversion, *others = page.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert conversion.startswith("qatconvert gemma4-e2b ")
    shutil.copytree(proven, tmp_path / "work" / "out" / "e2b")
    for line in others:
        done = as_writer(*shlex.split(line)[1:])
        assert done.returncode == 0, done.stderr
    assert hub.storage_of.tags.keys() == {("OWNER/NAME", "v1")}
