"""A glossary behind every term of the pages."""

from __future__ import annotations

from typing import Any

from support.page import Page
from support.reports import WEIGHT, baseline, entry, gate, report_of, weights
from validation.limits import KNOWN
from validation.report.glossary import ENTRIES, entries_of, entry_of
from validation.report.html import render_html
from validation.report.markdown import render_markdown

#: Labels that are names, of which a glossary knows nothing.
NAMES = {"gguf", "onnx", WEIGHT, "norm.weight", "vision encoder", "somewhere"}


def full() -> dict[str, Any]:
    """A report with every table that there is."""
    inexact = weights(97)
    inexact["per_tensor"][0]["inexact_blocks"] = [{"row": 0, "index": 1, "ulp": 3, "kind": "wrong"}]
    decode = {"positions": 9, "mean_kld": 0.0, "max_kld": 0.0, "tokens_per_second": 2.0}
    text = {
        "kind": "k",
        "prompt": "p",
        "reference": "r",
        "engine": "r",
        "equal_characters": 1,
        "divergence": None,
    }
    greedy = {
        "prompts": 1,
        "diverging": 0,
        "characters": 1,
        "equal_characters": 1,
        "largest_gap": 0.0,
        "texts": [text],
    }
    prompts = {
        "chats": 1, "equal": 1, "refused": 0, "difference": None, "runtime_limits": [],
        "template": {"sha256": "a" * 64, "artifact_sha256": "a" * 64, "engine": "e", "edits": []},
    }  # fmt: skip
    ends: dict[str, Any] = {
        "checkpoint": [1],
        "engine": [1],
        "missing": [],
        "extra": [],
        "lost": [],
        "by_rule": [],
    }
    engine = {
        "name": "e", "version": "1", "tokenizer": {"texts": 1, "equal": 1, "difference": None},
        "prompts": prompts, "ends": ends, "greedy": greedy,
        "scores": {"tokens": 1, "mean_abs": 0.0, "max_abs": 0.0},
    }  # fmt: skip
    graph = {"form": "itself", "mean_kld": 0.0, "mean_kld_beyond_window": None, "layers": [0], "layers_of": 2}
    runtime = {
        "name": "r", "version": "1", "mean_kld_same_weights": 0.0, "note": "n", "graph": graph,
        "provider": "cpu", "signatures": ["decode"], "context_length": 9, "decode": decode, "engine": engine,
    }  # fmt: skip
    way = {"chosen": True, "passed": True, "gates": [], "mean_kld": 0.0, "same_top_p": 1.0, "max_abs": 0.0}
    way |= {"decode_mean_kld": 0.0, "decode_tokens_per_second": 1.0}
    different = {"where": "somewhere", "expected": "e", "found": "f", "deciding": True}
    whole = entry(
        weights=inexact, runtime=runtime, baseline=baseline(), requires={"llama.cpp": "b1"}, warnings=["w"],
        kv_cache={"tokens": 1, "bytes": 2}, options={"from": "artifact", "name": "m"}, weight_bytes=12,
        differences={"deciding": 1, "descriptive": 0, "listed": [different]},
        parts={"vision": {"files": ["f"], "bytes": 1, "gates": [gate("exact_values", 1.0, 1.0, True)]}},
        left_out=[{"part": "vision encoder", "tensors": 1, "bytes": 1}],
        gates=[gate(name, 1.0, 1.0, True) for name in ("same_as_built", *KNOWN)],
        alternatives=[{**way, "accuracy_level": 4}, {**way, "activations": "1"}],
    )  # fmt: skip
    content = report_of({"gguf": whole, "onnx": {"artifact": "x", "passed": False, "error": "e"}})
    content["command"] = "qatconvert convert m"
    content["source"]["date"] = "2026-04-02T12:34:56Z"
    content["targets"]["gguf"] |= {"tool": {"name": "t", "version": "1"}, "command": "c"}
    content["left_out"] = [{"part": "vision encoder", "tensors": 1, "bytes": 1}]
    return content


def test_every_label_of_a_table_leads_to_an_entry() -> None:
    page = Page(render_html(full()))
    ids = {value for name, value in page.attributes if name == "id"}
    explained = {one.term for one in ENTRIES}
    found = [(text, place) for _, text, place in page.labels if not (text in explained and place is None)]
    assert len(found) > 100
    assert [text for text, place in found if place is None and text not in NAMES] == ["k: “p”"]
    assert {place[1:] for _, place in found if place} <= ids


def test_an_entry_stands_once_and_is_plain() -> None:
    assert len({one.anchor for one in ENTRIES}) == len(ENTRIES)
    for one in ENTRIES:
        assert one.text.endswith(".")
        for sentence in one.text.split(". "):
            assert len(sentence.split()) <= 35, sentence


def test_labels_with_more_words_lead_to_the_same_entry() -> None:
    for label, term in {
        "mean KLD": "mean KLD",
        "  mean KLD": "mean KLD",
        "mean KLD of decoding": "decode_mean_kld",
        "vision: exact_values": "exact_values",
        "perplexity (reference: 7.6)": "perplexity",
        "accuracy level 4 (chosen)": "ways to run it",
        "exact blocks of naive-q4_0": "exact blocks",
    }.items():
        found = entry_of(label)
        assert found is not None
        assert found.term == term
    assert entry_of("blk.0.ffn_up.weight") is None


def test_markdown_explains_what_its_tables_have() -> None:
    text = render_markdown(full()).replace("\\", "")
    for term in ("perplexity", "exact blocks", "graph_kld", "baseline", "4. without rounding"):
        assert f"- **{term}**: " in text
    assert [one.term for one in entries_of(["mean KLD", "mean_kld", "x"])] == ["mean KLD"]


def test_an_error_of_codes_times_scales_is_explained_beside_0_ulp() -> None:
    text = Page(render_html(full())).text
    assert text.count("Two errors of each tensor") == 1
    found = entry_of("relative RMS error of codes x scales")
    assert found is not None
    assert "0 ulp, against the checkpoint's bf16" in found.text
