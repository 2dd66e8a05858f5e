"""Reports: the same facts in three forms, whatever names a model brings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from support.page import Page
from support.reports import HOSTILE, logits, report, weights
from support.schemas import faults
from validation.exactness import Block, TensorExactness, WeightExactness
from validation.report import texts
from validation.report.entries import weights_entry
from validation.report.files import assemble, write
from validation.report.html import render_html
from validation.report.markdown import render_markdown


def test_the_three_files_say_the_same(tmp_path: Path) -> None:
    content = report()
    write(tmp_path, content)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == content
    page = Page((tmp_path / "report.html").read_text("utf-8")).text
    markdown = (tmp_path / "report.md").read_text("utf-8").replace("\\", "")
    for text in (page, markdown):
        for figure in (
            "gemma4-demo",
            "mean KLD",
            "0.001000",
            "99.50 %",
            "12.500",
            "llama.cpp 1.2",
            "1,234,567",
        ):
            assert figure in text
        assert "passed" in text
        assert "FAILED" not in text


def test_tool_command_and_date_of_the_commit_stand_on_top() -> None:
    content = report()
    content["command"] = "qatconvert convert 'a <b>'"
    content["source"] |= {"repo": "a/b", "revision": "c" * 40, "date": "2026-04-02T12:34:56Z"}
    page, markdown = Page(render_html(content)), render_markdown(content)
    for text in (page.text, markdown.replace("&lt;", "<").replace("&gt;", ">")):
        top = text[: text.index("Targets")]
        for told in (
            "qatconvert 0.1.0",
            "qatconvert convert 'a <b>'",
            f"a/b@{'c' * 40}",
            "2026-04-02T12:34:56Z",
        ):
            assert told in top
    assert "source commit of" not in render_markdown(report())


def test_json_has_the_contracts_keys_in_order_and_short_lists(tmp_path: Path) -> None:
    write(tmp_path, report())
    text = (tmp_path / "report.json").read_text("utf-8")
    assert list(json.loads(text)) == [
        "schema", "tool", "command", "model", "source", "reference", "left_out", "targets",
    ]  # fmt: skip
    assert '"kld": [0.001, 0.002, 0.0, 0.0005]' in text


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, report())
        files.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    text = render_html(
        report(baseline={"name": "naive-q4_0", "weights": weights(3), "logits": logits([1.0] * 4)})
    )
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not [
        name
        for name, value in page.attributes
        if name in ("src", "srcset") or name.startswith("on") or (name == "href" and value[:1] != "#")
    ]
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_hostile_names_stay_names() -> None:
    content = report(HOSTILE, HOSTILE, weights=weights(50, HOSTILE))
    page = Page(render_html(content))
    assert "script" not in page.tags
    assert HOSTILE in page.text
    markdown = render_markdown(content)
    assert not re.search(
        r"(?<!\\)[|`*]", "".join(line for line in markdown.splitlines() if "alert" in line and line[0] != "|")
    )
    row = next(line for line in markdown.splitlines() if line.startswith("| ") and "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "<script" not in markdown
    assert "](" not in markdown.replace("\\](", "")


def test_a_failed_gate_is_said_in_words() -> None:
    gate = {"name": "mean_kld", "limit": 0.01, "value": None, "passed": False, "note": "NaN logits"}
    broken = logits([None, 1e-3, None, 0.0], mean_kld=None, ppl=None)
    content = report(passed=False, gates=[gate], logits=broken)
    for text in (Page(render_html(content)).text, render_markdown(content)):
        assert "FAILED: NaN logits" in text
        assert "gguf: FAILED" in text
        assert "not finite" in text


def test_inexact_tensors_are_named() -> None:
    content = report(weights=weights(97))
    assert "| layers.0.mlp.up\\_proj.weight | Q4\\_0 | 97.0000 % | 3 bf16 ulp |" in render_markdown(content)


def test_distances_are_told_in_the_precision_that_they_are_counted_in() -> None:
    named = (Block(4, 1, 19_462_144, "wrong"), Block(5, 0, 1, "scale not representable"))
    fields: dict[str, Any] = {"wrong": 1, "named": named, "precision": "f32", "nan_values": 5}
    coded = TensorExactness("w", "w", "INT4", 32, 64, 63, 2, 1, 19_462_144, 0.1, **fields)
    norm = TensorExactness("norm", "norm", "F32", None, 8, 7, 0, 0, 2, 0.1, wrong=1)
    entry = weights_entry(WeightExactness((coded, norm)))
    assert (entry["max_ulp"], entry["max_ulp_by_precision"], entry["nan_values"]) == (
        19_462_144,
        {"f32": 19_462_144},
        5,
    )
    assert entry["off_lattice"]["max_ulp_by_precision"] == {"bf16": 2}
    content = report(weights=entry)
    content["source"] |= {"date": None, "stored_as": "codes", "files": {"read": 1, "compared": 0}}
    assert faults("report", content) == []
    page, markdown = Page(render_html(content)).text, render_markdown(content)
    assert page.count("19462144 f32 ulp") == 3  # of the artifact, of the block, and of the tensor
    assert page.count("2 bf16 ulp") == 1
    assert "| w | INT4 | 50.0000 % | 19462144 f32 ulp |" in markdown
    assert "bf16 ulp" not in markdown


def test_a_report_of_an_older_version_names_no_precision() -> None:
    older = weights(97)
    del older["max_ulp_by_precision"]
    for tensor in older["per_tensor"]:
        del tensor["precision"]
    markdown = render_markdown(report(weights=older))
    assert "97.0000 % | 3 ulp |" in markdown
    assert "| largest error against the checkpoint's | 3 ulp |" in markdown


def test_a_baseline_stands_beside_the_artifact() -> None:
    content = report(
        baseline={"name": "naive-q4_0", "weights": weights(3), "logits": logits([1.0] * 4, mean_kld=0.9)}
    )
    assert "| mean KLD | 0.001000 | 0.9 |" in render_markdown(content)
    assert "| exact blocks | 100 % | 3.0000 % |" in render_markdown(content)


def alternative(level: int, chosen: bool, **changes: Any) -> dict[str, Any]:
    return {
        "accuracy_level": level,
        "chosen": chosen,
        "passed": True,
        "mean_kld": 0.002,
        "same_top_p": 0.97,
        "max_abs": 0.3,
        "decode_mean_kld": 1e-5,
        "decode_tokens_per_second": 41.25,
        "gates": [{"name": "mean_kld", "limit": 0.01, "value": 0.002, "passed": True}],
    } | changes


def test_every_way_to_run_an_artifact_that_was_measured_stands_in_a_table() -> None:
    failed = {"name": "mean_kld", "limit": 0.01, "value": 0.02, "passed": False}
    tried = [
        alternative(4, False, passed=False, mean_kld=0.02, gates=[failed]),
        alternative(0, True),
        {"accuracy_level": 2, "chosen": False, "passed": False, "error": "no such <kernel>"},
    ]
    content = report(alternatives=tried)
    markdown = render_markdown(content)
    assert "| figure | accuracy level 4 | accuracy level 0 (chosen) | accuracy level 2 |" in markdown
    assert "| decoded tokens per second | 41.25 | 41.25 | - |" in markdown
    assert "| mean KLD | 0.020000 | 0.002000 | - |" in markdown
    assert "| gates | FAILED: mean\\_kld | passed | FAILED: no such &lt;kernel&gt; |" in markdown
    page = Page(render_html(content))
    assert "kernel" not in page.tags
    for figure in ("Ways to run it", "accuracy level 4", "41.25", "97.00 %", "FAILED: mean_kld", "chosen"):
        assert figure in page.text
    assert "Ways to run it" not in render_markdown(report()) + render_html(report())


def test_how_an_artifact_was_run_and_decoded_is_told() -> None:
    decode = {
        "positions": 128,
        "mean_kld": 2e-6,
        "max_kld": 3e-5,
        "max_abs": 0.01,
        "tokens_per_second": 41.25,
    }
    runtime = {
        "name": "onnxruntime",
        "version": "1.32.0",
        "provider": "cuda",
        "accuracy_level": 4,
        "threads": 8,
        "peak_bytes": 2_345_000_000,
        "decode": decode,
        "mean_kld_same_weights": None,
    }
    content = report(runtime=runtime)
    for text in (Page(render_html(content)).text, render_markdown(content)):
        assert "provider cuda, accuracy level 4, 8 threads, at most 2,345 MB of memory" in text
        assert (
            "41.25 tokens per second; mean KLD 2.0e-06, largest 0.000030, against the same 128 positions"
            in text
        )
    content = report(runtime={**runtime, "decode": decode | {"mean_kld": None, "max_kld": None}})
    assert "mean KLD not finite" in render_markdown(content)


def test_how_a_bundle_was_run_is_told() -> None:
    decode = {"positions": 128, "mean_kld": 0.0, "max_kld": 0.0, "max_abs": 0.0, "tokens_per_second": 52.0}
    runtime = {
        "name": "LiteRT",
        "version": "2.3.0",
        "provider": "cpu",
        "signatures": ["decode", "prefill_128"],
        "context_length": 4096,
        "rounded_activations": True,
        "threads": 2,
        "peak_bytes": 153_000_000,
        "decode": decode,
        "mean_kld_same_weights": None,
    }
    text = Page(render_html(report(runtime=runtime))).text
    assert "provider cpu, activations rounded to int8, 2 threads, at most 153 MB of memory" in text
    assert "decode, prefill_128; context of 4,096 tokens" in text
    assert "mean KLD 0, largest 0, against the same 128 positions behind a prefill" in text


def test_warnings_and_formats_are_told() -> None:
    formats = {"INT4": 2, "INT4+sums": 81}
    content = report(weights=weights(100) | {"formats": formats}, warnings=["litert: 7 blocks are rounded"])
    for text in (Page(render_html(content)).text, render_markdown(content)):
        assert "100 of 100 blocks exact (2 as INT4, 81 as INT4+sums)" in text
        assert "litert: 7 blocks are rounded" in text
    assert "as INT4" not in render_markdown(report(weights=weights(100) | {"formats": {"INT4": 83}}))


def test_what_was_not_validated_says_so() -> None:
    entry = {"artifact": "gguf/x.gguf", "bytes": 10, "bits_per_weight": 4.5, "passed": None}
    content = assemble("x", {"repo": "a/b", "revision": "0" * 40, "format": "f"}, None, {"gguf": entry})
    for text in (Page(render_html(content)).text, render_markdown(content)):
        assert "gguf: not validated" in text
        assert f"a/b@{'0' * 40}" in text


def test_what_could_not_be_validated_says_why_and_does_not_look_proven() -> None:
    entry = {
        "artifact": "gguf/x.gguf",
        "bytes": 10,
        "bits_per_weight": 4.5,
        "passed": False,
        "error": "killed",
    }
    content = assemble("x", {"repo": "a/b", "format": "f"}, None, {"gguf": entry})
    assert "gguf: FAILED" in Page(render_html(content)).text
    assert "could not be validated</a></dt><dd>killed</dd>" in render_html(content)
    assert "- could not be validated: killed" in render_markdown(content)


def test_a_part_whose_files_lie_elsewhere_is_told_without_their_size():
    (fact,) = texts._part_facts({"parts": {"vision": {"files": ["a.bin"]}}})
    assert fact == ("vision", "a.bin")
    (fact,) = texts._part_facts({"parts": {"vision": {"files": ["a.bin"], "bytes": 2048}}})
    assert fact == ("vision", "a.bin, 2,048 bytes")
