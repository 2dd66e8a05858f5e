"""What MODEL means, and the user's own names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter import names
from converter.errors import CheckpointError, DestinationError, QatconvertError, UsageError
from converter.names import (
    Source,
    add_model,
    file_name,
    known_models,
    one_line,
    printable,
    remove_model,
    resolve,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and an empty folder for the user's names."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("QATCONVERT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write_mapping(home: Path, text: str) -> Path:
    home.mkdir(exist_ok=True)
    (home / "models.json").write_text(text)
    return home / "models.json"


@pytest.mark.parametrize(
    ("alias", "repo"),
    [
        ("gemma4-e2b", "google/gemma-4-E2B-it-qat-q4_0-unquantized"),
        ("gemma4-e4b", "google/gemma-4-E4B-it-qat-q4_0-unquantized"),
        ("gemma4-12b", "google/gemma-4-12B-it-qat-q4_0-unquantized"),
        ("gemma4-26b-a4b", "google/gemma-4-26B-A4B-it-qat-q4_0-unquantized"),
        ("gemma4-31b", "google/gemma-4-31B-it-qat-q4_0-unquantized"),
        ("gemma4-e2b-mobile", "google/gemma-4-E2B-it-qat-mobile-transformers"),
        ("gemma4-e4b-mobile", "google/gemma-4-E4B-it-qat-mobile-transformers"),
        ("gemma4-9b", "google/gemma-4-9B-it-qat-q4_0-unquantized"),
        ("gemma4-e8b", "google/gemma-4-E8B-it-qat-q4_0-unquantized"),
        ("gemma4-1.5b", "google/gemma-4-1.5B-it-qat-q4_0-unquantized"),
        ("gemma4-100b-a10b", "google/gemma-4-100B-A10B-it-qat-q4_0-unquantized"),
    ],
)
def test_an_alias_means_the_repository_of_its_size(alias: str, repo: str) -> None:
    assert resolve(alias) == Source("hub", alias, repo=repo, alias=alias)
    assert resolve(alias.upper()) == resolve(alias)
    assert resolve(f"{alias}@refs/pr/4") == Source("hub", alias, repo=repo, revision="refs/pr/4", alias=alias)


def test_the_demo_is_the_directory_that_ships_with_the_package() -> None:
    source = resolve("gemma4-demo")
    assert (source.kind, source.name, source.repo) == ("demo", "gemma4-demo", None)
    assert source.path == Path(names.__file__).parent / "demo" / "gemma4-demo"
    assert (source.path / "config.json").is_file()


def test_the_demo_has_no_revisions() -> None:
    with pytest.raises(UsageError, match="ships with qatconvert and has no revisions"):
        resolve("gemma4-demo@main")


def test_a_repository_is_named_by_its_last_part_in_lower_case() -> None:
    assert resolve("Google/Gemma_4.X@v1.0") == Source(
        "hub", "gemma_4.x", repo="Google/Gemma_4.X", revision="v1.0"
    )


@pytest.mark.parametrize("size", ["12b", "26b-a4b", "31b", "9b"])
def test_mobile_checkpoints_exist_for_two_sizes_only(size: str) -> None:
    with pytest.raises(UsageError, match=f"E2B, E4B only; .*models add gemma4-{size}-mobile OWNER/NAME"):
        resolve(f"gemma4-{size}-mobile")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("gemma4", "gemma4-"),
        ("gemma4:e2b", "gemma4-e2b"),
        ("gemma-4-e4b", "gemma4-e4b"),
        ("gemma4-dmeo", "gemma4-demo"),
        ("gemma4-b", "gemma4-"),
        ("foo", "known names: gemma4-e2b, "),
        ("foo@main", "known names: gemma4-e2b, "),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_come_close(name: str, suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert "is no known model" in str(caught.value)
    assert suggestion in str(caught.value)


def test_suggestions_include_the_users_names() -> None:
    add_model("house-model", "me/model")
    with pytest.raises(UsageError, match="did you mean house-model"):
        resolve("hous-model")


# Directories and files


@pytest.mark.parametrize(
    "given_path", ["./My Model", "{work}/My Model", "My Model", "My Model/", "../work/My Model"]
)
def test_a_directory_is_named_after_itself_in_safe_characters(given_path: str) -> None:
    Path("My Model").mkdir()
    text = given_path.format(work=Path.cwd())
    assert resolve(text) == Source("directory", "My-Model", path=Path(text))


def test_the_working_directory_has_its_own_name() -> None:
    assert (resolve(".").kind, resolve(".").name) == ("directory", "work")


def test_the_root_directory_has_a_name_too() -> None:
    assert resolve("/").name == "model"


def test_the_home_directory_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/work").path == tmp_path / "work"


@pytest.mark.parametrize(
    "name", ["./x", "/nowhere/x", "../x", "~/x-that-is-not", "~nobody/x", "x/", "a/b/c", "x.gguf", "a\\b"]
)
def test_what_looks_like_a_path_is_never_anything_else(name: str) -> None:
    with pytest.raises(UsageError, match=r"no such file or directory|cannot be read"):
        resolve(name)


def test_a_gguf_file_is_known_by_its_content() -> None:
    for name in ("model.gguf", "sha256-0123"):
        Path(name).write_bytes(b"GGUF\3\0\0\0")
        assert resolve(name) == Source("gguf", name.removesuffix(".gguf"), path=Path(name))


def test_what_is_neither_file_nor_directory_is_refused_unread() -> None:
    os.mkfifo("pipe")
    with pytest.raises(CheckpointError, match="pipe: not a GGUF file"):
        resolve("pipe")


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "pytorch_model.bin", "empty"])
def test_another_file_is_refused(name: str) -> None:
    Path(name).write_bytes(b"" if name == "empty" else b"\x80\4GGUF")
    with pytest.raises(CheckpointError, match=rf"{name}: not a GGUF file"):
        resolve(name)


def test_an_alias_wins_over_a_directory_of_the_same_name_and_says_so() -> None:
    Path("gemma4-e2b").mkdir()
    source = resolve("gemma4-e2b")
    assert source.kind == "hub"
    assert source.note is not None
    assert source.note.endswith("the local gemma4-e2b is not read (write ./gemma4-e2b to mean it)")
    assert resolve("./gemma4-e2b").kind == "directory"


def test_a_directory_wins_over_a_repository_of_the_same_name_and_says_so() -> None:
    Path("google/gemma").mkdir(parents=True)
    source = resolve("google/gemma")
    assert source.kind == "directory"
    assert (
        source.note
        == "google/gemma is read as the local directory; the Hub's repository would be google/gemma@main"
    )
    assert resolve("google/gemma@main").kind == "hub"


def test_a_directory_that_could_be_nothing_else_needs_no_note() -> None:
    Path("model").mkdir()
    assert resolve("model").note is None
    assert resolve("gemma4-e2b").note is None


def test_a_directory_has_no_revisions() -> None:
    Path("model").mkdir()
    with pytest.raises(UsageError, match="local path, which has no revisions"):
        resolve("model@main")


def test_an_at_sign_may_be_part_of_a_directorys_name() -> None:
    Path("model@home").mkdir()
    assert resolve("model@home").path == Path("model@home")


# Hostile and malformed names


@pytest.mark.parametrize(
    "name",
    [
        "",
        "\0",
        "a/\0",
        "x" * 5000,
        "x" * 300,
        "owner/",
        "owner/na me",
        "owner/..",
        "owner/na--me",
        "owner/name.git",
        "-owner/name",
        "owner/.name",
        "owner/name-",
        "ówner/name",
        "owner/name\n",
        "owner/name?x=1",
        "owner/name#x",
        "owner/%2e%2e",
        "https://huggingface.co/google/gemma",
        "hf://google/gemma",
        "owner/name@",
        "owner/name@..",
        "owner/name@a/../b",
        "owner/name@-x",
        "owner/name@/x",
        "owner/name@a//b",
        "owner/name@x.lock",
        "owner/name@.x",
        "owner/name@a b",
        "owner/name@a@b",
        "owner/name@x\n",
        "gemma4-e2b@../../x",
        "gemma4-e2b@",
        "@main",
        "\x1b[31m",
        "gemma4-9b\n",
        "gemma4-\uff19b",
        "\udcff",
    ],
)
def test_a_malformed_name_is_wrong_usage_in_one_printable_line(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@given(st.text(max_size=40) | st.from_regex(r"[a-z./@~-]{1,20}", fullmatch=True))
def test_any_text_is_a_source_or_a_one_line_error(text: str) -> None:
    try:
        source = resolve(text)
    except QatconvertError as error:
        line = str(error)
    else:
        line = source.note or source.name
        assert source.name == file_name(source.name)
        assert (source.path is None) != (source.repo is None)
    assert line.isprintable()


@given(st.text(max_size=200))
def test_a_file_name_is_safe_anywhere(text: str) -> None:
    name = file_name(text)
    assert name.isascii()
    assert name.strip("-._") == name != ""
    assert not set(name) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


@given(st.text(st.characters(), max_size=300))
def test_printable_text_is_one_short_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 120


@given(st.text(st.characters(), max_size=3000))
def test_a_message_is_one_printable_line_whatever_it_quotes(text: str) -> None:
    shown = one_line(f"first {text} last")
    assert shown.isprintable()
    assert len(shown) <= 1000
    assert shown.startswith("first")
    assert shown.endswith("last")


# The user's own names


def test_an_added_name_resolves_to_its_repository(home: Path) -> None:
    assert add_model("Team-Model", "me/Gemma@v2").name == "team-model"
    assert resolve("team-model") == Source(
        "hub", "team-model", repo="me/Gemma", revision="v2", alias="team-model"
    )
    assert resolve("team-model@v3").revision == "v3"
    assert json.loads((home / "models.json").read_text()) == {
        "schema": 1,
        "models": {"team-model": "me/Gemma@v2"},
    }


def test_a_mapping_takes_a_name_of_the_pattern() -> None:
    add_model("gemma4-9b", "me/gemma-9b")
    assert resolve("gemma4-9b").repo == "me/gemma-9b"
    add_model("gemma4-12b-mobile", "me/mobile")
    assert resolve("gemma4-12b-mobile").repo == "me/mobile"


def test_a_built_in_name_cannot_be_mapped_to_something_else() -> None:
    for name in ("gemma4-e2b", "gemma4-demo", "GEMMA4-E4B-mobile"):
        with pytest.raises(UsageError, match="is a built-in name and stays what it is"):
            add_model(name, "me/other")


def test_a_built_in_name_that_the_file_maps_elsewhere_is_a_conflict_that_can_be_removed(home: Path) -> None:
    path = write_mapping(home, '{"schema": 1, "models": {"gemma4-e2b": "me/other", "mine": "me/mine"}}')
    with pytest.raises(
        UsageError, match=f"built in and also maps to me/other in {path}.*models remove gemma4-e2b"
    ):
        resolve("gemma4-e2b")
    assert resolve("mine").repo == "me/mine"
    remove_model("gemma4-e2b")
    assert resolve("gemma4-e2b").repo == "google/gemma-4-E2B-it-qat-q4_0-unquantized"


def test_a_mapping_equal_to_the_built_in_one_is_no_conflict(home: Path) -> None:
    repo = "google/gemma-4-E2B-it-qat-q4_0-unquantized"
    write_mapping(home, json.dumps({"schema": 1, "models": {"gemma4-e2b": repo}}))
    assert resolve("gemma4-e2b").repo == repo


def test_a_removed_name_means_what_it_meant_before() -> None:
    add_model("gemma4-9b", "me/gemma")
    assert remove_model("GEMMA4-9b").repo == "me/gemma"
    assert resolve("gemma4-9b").repo == "google/gemma-4-9B-it-qat-q4_0-unquantized"
    with pytest.raises(UsageError, match=r"gemma4-9b is not in .*models\.json \(names there: none\)"):
        remove_model("gemma4-9b")


def test_known_models_are_the_built_in_ones_then_the_users() -> None:
    add_model("zebra", "me/z")
    add_model("ant", "me/a")
    listed = known_models()
    assert [model.name for model in listed if model.origin == "user"] == ["ant", "zebra"]
    assert [model.name for model in listed[:3]] == ["gemma4-e2b", "gemma4-e4b", "gemma4-12b"]
    assert {model.name for model in listed if model.repo is None} == {"gemma4-demo", "gemma4-demo-mobile"}


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("", "me/x"),
        ("../x", "me/x"),
        ("a/b", "me/x"),
        ("a@b", "me/x"),
        ("a b", "me/x"),
        ("x.gguf", "me/x"),
        ("-x", "me/x"),
        ("a..b", "me/x"),
        ("x" * 65, "me/x"),
        ("x\n", "me/x"),
        ("\u212a", "me/x"),  # the Kelvin sign is a k in lower case
        ("x", "me"),
        ("x", "me/x/y"),
        ("x", "../x"),
        ("x", "me/x@../y"),
        ("x", "me/x@"),
        ("x", "https://host/x"),
        ("x", "./me"),
        ("x", ""),
    ],
)
def test_a_malformed_name_or_repository_is_not_written(home: Path, name: str, repo: str) -> None:
    with pytest.raises(UsageError) as caught:
        add_model(name, repo)
    assert str(caught.value).isprintable()
    assert not home.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"schema": 2, "models": {}}',
        '{"schema": 1, "models": []}',
        '{"schema": 1, "models": {"x": 7}}',
        '{"schema": 1, "models": {"x": "../../y"}}',
        '{"schema": 1, "models": {"../x": "me/y"}}',
        '{"schema": 1, "models": {"X": "me/y"}}',
        '{"schema": 1, "models": {"x": "me/y", "x": "me/z"}}',
        "[" * 100_000,
        "\0",
        " " * 2_000_000,
    ],
)
def test_a_damaged_mapping_is_one_line_that_names_the_file(home: Path, text: str) -> None:
    path = write_mapping(home, text)
    for action in (known_models, lambda: resolve("gemma4-9b"), lambda: add_model("y", "me/y")):
        with pytest.raises(CheckpointError) as caught:
            action()
        assert str(caught.value).isprintable()
        assert str(caught.value).endswith(f"repair or delete {path}")
    assert path.read_text() == text


def test_a_damaged_mapping_does_not_keep_a_path_or_repository_from_being_read(home: Path) -> None:
    write_mapping(home, "{")
    assert resolve("./").kind == "directory"
    assert resolve("google/gemma").kind == "hub"


def test_a_home_that_is_a_file_is_named(home: Path) -> None:
    home.write_text("")
    with pytest.raises(DestinationError, match=r"models\.json: cannot be written"):
        add_model("x", "me/x")


def test_a_failed_write_leaves_the_old_mapping_and_nothing_else(home: Path) -> None:
    add_model("first", "me/first")
    before = (home / "models.json").read_bytes()
    code = (
        "import resource, sys; from converter.names import add_model\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "add_model('second', 'me/second')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.getcwd())
    assert "DestinationError" in run.stderr.splitlines()[-1]
    assert [path.name for path in home.iterdir()] == ["models.json"]
    assert (home / "models.json").read_bytes() == before


def test_without_a_home_of_its_own_the_applications_folder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    monkeypatch.delenv("QATCONVERT_HOME")
    assert names.mapping_file() == Path(click.get_app_dir("qatconvert")) / "models.json"


def test_names_are_resolved_without_any_heavy_import() -> None:
    code = (
        "import sys; from converter.names import resolve; resolve('gemma4-9b')\n"
        "print({'numpy', 'torch', 'numba', 'huggingface_hub', 'rich'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("set()\n", "")
