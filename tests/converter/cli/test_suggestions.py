"""What is mistyped is answered with what may be meant, and is never looked up elsewhere."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inpsect", "gemma4-demo"], "no command and no model 'inpsect': did you mean inspect?"),
        (["verfy"], "no command and no model 'verfy': did you mean verify?"),
        (["models", "ad", "x", "a/b"], "Did you mean 'add'?"),
        (["gemma4-e2"], "did you mean gemma4-e2b? MODEL is"),
        (["gemma4-demo", "--tarjet", "gguf"], "--target"),
        (["gemma4-demo", "--onnx-dtype", "float3"], "'float3' (did you mean float32?)"),
        (["gemma4-demo", "--off-lattice", "Q8_1"], "'Q8_1' (did you mean q8_0?)"),
        (["gemma4-demo", "--gate", "mean_kl=1"], "'mean_kl=1' (did you mean mean_kld?)"),
        (["gemma4-demo", "--allow-unrun", "graph_kd"], "'graph_kd' (did you mean graph_kld?)"),
        (["gemma4-demo", "--runtime", "gguf.lamacpp"], "(did you mean gguf.llamacpp?)"),
    ],
)
def test_what_may_be_meant_is_proposed(qatconvert, error_of, words, told):
    assert told in error_of(qatconvert(*words), status=2)


def test_a_gate_with_a_wrong_limit_is_not_called_mistyped(qatconvert, error_of):
    assert "'mean_kld=x': give one of" in error_of(qatconvert("x", "--gate", "mean_kld=x"), 2)


def test_a_model_may_be_called_almost_as_a_command_is(qatconvert, error_of, checkpoint_factory, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "verfy").symlink_to(checkpoint_factory("text"))
    done = qatconvert("verfy", "--no-validate", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["./x", "../x", "/nowhere/x", "~/x-is-not-there", "x/y/z", "x/", "C:\\models\\x", "C:/x", "own/x"]
)
def test_a_path_that_does_not_exist_is_called_that(qatconvert, error_of, tmp_path, name):
    (tmp_path / "work" / "own").mkdir(parents=True)
    # a proxy that nobody serves: a request would be told as a failure of the network
    told = error_of(qatconvert(name, environment={"HF_ENDPOINT": "http://127.0.0.1:9"}), status=2)
    assert told.startswith(f"qatconvert: {name}: no such file or directory")


def test_a_repository_beside_a_directory_of_its_owner_is_meant_by_its_revision(
    qatconvert, error_of, tmp_path
):
    (tmp_path / "work" / "own").mkdir(parents=True)
    assert "would be own/x@main)" in error_of(qatconvert("own/x"), status=2)
    assert "own/x@main is not in the cache" in error_of(qatconvert("own/x@main", "--offline"), status=1)


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "C:\\a\\b"],
        ["gemma4-demo", "--text", "C:\\a\\b"],
        ["gemma4-demo", "--license", "C:\\a\\b"],
    ],
)
def test_a_path_of_windows_is_shown_as_it_was_given(qatconvert, error_of, words):
    assert "'C:\\a\\b' does not exist" in error_of(qatconvert(*words), status=2)
