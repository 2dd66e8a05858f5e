"""For every gate a wrong artifact that it alone catches, beside the right one, which all of them pass."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.checkpoint.opened import open_checkpoint
from converter.demo import DEMO
from support.tampering import GgufFile
from validation.baseline import write_naive_q4_0
from validation.evaluation import find_evaluation
from validation.limits import OWN_NOTE
from validation.proof import validate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(write_gguf: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_gguf(DEMO, tmp_path_factory.mktemp("demo"))


Failing = Callable[..., list[str]]


@pytest.fixture(scope="module")
def failing(home: Path) -> Failing:
    """``failing(artifact, path, **settings)``: names of the gates that an artifact does not pass."""

    def names(artifact: Any, path: Path | None = None, **settings: Any) -> list[str]:
        proof = validate(artifact.checkpoint, artifact.target, path or artifact.path, cache=home, **settings)
        return [gate["name"] for gate in proof["entry"]["gates"] if not gate["passed"]]

    return names


def edited(artifact: Any, path: Path, edit: Callable[[GgufFile], None]) -> Path:
    """A copy of a GGUF at ``path``, edited."""
    parsed = GgufFile.read(artifact.path)
    edit(parsed)
    parsed.write(path)
    return path


def edit_tensor(name: str, change: Callable[[bytearray], None]) -> Callable[[GgufFile], None]:
    def edit(one: GgufFile) -> None:
        index = [tensor[0] for tensor in one.tensors].index(name)
        *head, data = one.tensors[index]
        changed = bytearray(data)
        change(changed)
        one.tensors[index] = (*head, bytes(changed))  # type: ignore[assignment]

    return edit


def edit_key(key: str, value: bytes) -> Callable[[GgufFile], None]:
    def edit(one: GgufFile) -> None:
        index = [name for name, _ in one.keys].index(key)
        one.keys[index] = (key, value)

    return edit


def test_the_right_artifact_passes_them_all(demo: Any, failing: Failing) -> None:
    assert failing(demo) == []


def test_one_code_is_caught_by_exact_fraction(demo: Any, failing: Failing, tmp_path: Path) -> None:
    def change(data: bytearray) -> None:
        data[18 * 100 + 7] ^= 0x10

    wrong = edited(demo, tmp_path / "wrong.gguf", edit_tensor("blk.2.ffn_down.weight", change))
    assert failing(demo, wrong, foreign=True) == ["exact_fraction"]


def test_one_value_of_a_norm_is_caught_by_exact_values(demo: Any, failing: Failing, tmp_path: Path) -> None:
    def change(data: bytearray) -> None:
        (value,) = struct.unpack_from("<f", data, 40)
        struct.pack_into("<f", data, 40, np.nextafter(np.float32(value), np.float32(9)))

    wrong = edited(demo, tmp_path / "wrong.gguf", edit_tensor("blk.2.attn_norm.weight", change))
    assert failing(demo, wrong, foreign=True) == ["exact_values"]


def test_a_checkpoint_on_no_lattice_is_caught_by_on_lattice_fraction(
    checkpoint_factory: Callable[..., Path], write_gguf: Callable[..., Any], failing: Failing, tmp_path: Path
) -> None:
    latent = write_gguf(checkpoint_factory("text", "latent"), tmp_path)
    assert failing(latent) == ["on_lattice_fraction"]
    assert failing(latent, off_lattice=True) == []


def edit_template(change: Callable[[str], str], demo: Any) -> Callable[[GgufFile], None]:
    template = change(demo.checkpoint.tokenizer.chat_template).encode()
    return edit_key("tokenizer.chat_template", struct.pack("<IQ", 8, len(template)) + template)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_template_for_a_role_that_no_chat_has_is_caught_by_same_as_built(
    foreign: bool, demo: Any, failing: Failing, tmp_path: Path
) -> None:
    change = edit_template(lambda text: text.replace('"developer": "system"', '"developer": "user"'), demo)
    wrong = edited(demo, tmp_path / "wrong.gguf", change)
    assert failing(demo, wrong, foreign=foreign) == ([] if foreign else ["same_as_built"])


def test_a_letter_of_the_template_is_caught_by_engine_same_prompts(
    demo: Any, failing: Failing, tmp_path: Path
) -> None:
    wrong = edited(demo, tmp_path / "wrong.gguf", edit_template(lambda text: text + "x", demo))
    assert failing(demo, wrong, foreign=True) == ["engine_same_prompts"]


def test_a_hidden_token_is_caught_by_engine_same_tokens(demo: Any, failing: Failing, tmp_path: Path) -> None:
    token, control = demo.checkpoint.tokenizer.tokens.index("<|channel>"), 3

    def edit(one: GgufFile) -> None:
        keys = dict(one.keys)
        types = bytearray(keys["tokenizer.ggml.token_type"])
        struct.pack_into("<i", types, 16 + 4 * token, control)  # behind the array's type and length
        edit_key("tokenizer.ggml.token_type", bytes(types))(one)

    wrong = edited(demo, tmp_path / "wrong.gguf", edit)
    assert failing(demo, wrong, foreign=True) == ["engine_same_tokens"]


def test_another_end_is_caught_by_engine_same_ends(demo: Any, failing: Failing, tmp_path: Path) -> None:
    wrong = edited(
        demo, tmp_path / "wrong.gguf", edit_key("tokenizer.ggml.eos_token_id", struct.pack("<II", 4, 3))
    )
    assert failing(demo, wrong, foreign=True) == ["engine_same_ends"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gemma4.rope.freq_base", struct.pack("<If", 6, 1.1e6)),
        ("gemma4.attention.sliding_window", struct.pack("<II", 4, 65)),
        ("gemma4.attention.layer_norm_rms_epsilon", struct.pack("<If", 6, 1e-3)),
    ],
)
def test_a_number_of_the_graph_is_caught_by_graph_kld(
    key: str, value: bytes, demo: Any, failing: Failing, tmp_path: Path
) -> None:
    wrong = edited(demo, tmp_path / "wrong.gguf", edit_key(key, value))
    failed = failing(demo, wrong, foreign=True)
    assert [name for name in failed if name != "mean_kld"] == ["graph_kld"]


@pytest.mark.parametrize(("gate", "other"), [("mean_kld", "same_top_p"), ("same_top_p", "mean_kld")])
def test_what_rounding_costs_a_model_is_caught_by_the_gates_of_the_logits(
    gate: str,
    other: str,
    checkpoint_factory: Callable[..., Path],
    write_gguf: Callable[..., Any],
    failing: Failing,
    tmp_path: Path,
) -> None:
    """A model on no lattice, rounded to four bits as the user asked: the artifact is what it is to be."""
    rounded = write_gguf(checkpoint_factory("text", "latent"), tmp_path, off_lattice="q4_0")
    open_to_all = {"mean_kld": 100.0, "same_top_p": 0.0}
    assert failing(rounded, off_lattice=True, gates={other: open_to_all[other]}) == [gate]


def test_weights_that_are_off_are_caught_in_a_model_that_predicts_nothing(
    checkpoint_factory: Callable[..., Path],
    write_gguf: Callable[..., Any],
    home: Path,
    tmp_path: Path,
) -> None:
    """The codes of a few blocks of one matrix are off by one: no more than rounding activations costs."""

    def change(data: bytearray) -> None:
        codes = np.frombuffer(data, np.uint8).reshape(-1, 18)[::48, 2:]
        codes ^= np.uint8(0x01)

    right = write_gguf(checkpoint_factory("text"), tmp_path)
    wrong = edited(right, tmp_path / "wrong.gguf", edit_tensor("blk.1.attn_output.weight", change))
    entries = [
        validate(right.checkpoint, "gguf", path, cache=home, foreign=True)["entry"]
        for path in (right.path, wrong)
    ]
    gates = [{gate["name"]: gate for gate in entry["gates"]} for entry in entries]
    assert all(gate["passed"] for gate in gates[0].values())
    failed = {name for name, gate in gates[1].items() if not gate["passed"]}
    assert {"exact_fraction", "mean_kld"} <= failed <= {"exact_fraction", "mean_kld", "same_top_p"}
    assert gates[1]["mean_kld"]["value"] < 3 * gates[0]["mean_kld"]["value"]
    assert gates[1]["mean_kld"]["limit"] == pytest.approx(
        1.1 * entries[1]["runtime"]["mean_kld_same_weights"] + 1e-4
    )


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_naive_rounding_is_caught_in_a_model_that_predicts_nothing(
    target: str, checkpoint_factory: Callable[..., Path], home: Path, tmp_path: Path
) -> None:
    """By limits that go by what the naive artifact's own runtime loses on its own weights."""
    checkpoint = open_checkpoint(checkpoint_factory("text"))
    naive = write_naive_q4_0(target, checkpoint, tmp_path)
    entry = validate(checkpoint, target, naive, cache=home, foreign=True)["entry"]
    failed = {gate["name"] for gate in entry["gates"] if not gate["passed"]}
    assert failed == {"exact_fraction", "mean_kld", "same_top_p"}


def test_without_logits_of_its_own_weights_nothing_judges_such_a_model(e2b: Any, home: Path) -> None:
    def of(**settings: Any) -> dict[str, Any]:
        entry = validate(e2b.checkpoint, "gguf", e2b.path, cache=home, same_weights=False, **settings)[
            "entry"
        ]
        return {"passed": entry["passed"], **{gate["name"]: gate for gate in entry["gates"]}}

    unjudged = of()
    assert unjudged["passed"] is None
    for name in ("mean_kld", "same_top_p"):
        assert (unjudged[name]["passed"], unjudged[name]["limit"]) == (None, None)
        assert "--no-same-weights" in unjudged[name]["note"]
    given = of(gates={"mean_kld": 0.5, "same_top_p": 0.5}, allow_unrun=("graph_kld",))
    assert [given[name]["passed"] for name in ("mean_kld", "same_top_p", "graph_kld")] == [True, True, None]
    assert given["mean_kld"]["limit"] == 0.5


def test_the_shipped_model_is_judged_by_the_narrow_limits_of_its_own_text(demo: Any, home: Path) -> None:
    entry = validate(demo.checkpoint, "gguf", demo.path, cache=home)["entry"]
    gate = next(gate for gate in entry["gates"] if gate["name"] == "mean_kld")
    own = find_evaluation(open_checkpoint(DEMO).evaluation).limits["gguf"]
    assert (gate["limit"], gate["note"]) == (own["mean_kld"], OWN_NOTE)
    assert 1.2 * gate["value"] < gate["limit"] < 2.5 * gate["value"]
