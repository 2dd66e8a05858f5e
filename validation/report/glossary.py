"""What the words in the tables of a report mean, in plain words and with units."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from validation.report.coverage import POINTS


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the glossary."""

    #: The word that it stands under.
    term: str
    text: str
    #: Other labels that it explains; one also explains labels that begin with it and go on after a space.
    labels: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Its id within a page."""
        return "term-" + re.sub(r"[^a-z0-9]+", "-", self.term.lower()).strip("-")


#: Sorted by term; the points that "proven" means come first.
ENTRIES: Final = tuple(
    sorted(
        (
            *(Entry(f"{number}. {point.title}", point.means) for number, point in enumerate(POINTS, 1)),
            Entry(
                "activation grids",
                "Static scales to whose multiples training rounded what goes into a module and comes out of "
                "it. An artifact that applies them is judged by transformers with them, any other one by "
                "transformers without. Beside the figures stands what they do by themselves (the KLD "
                "between transformers with and without them), and how far the artifact is from the model "
                "with them.",
                ("mean KLD of the activation grids", "mean KLD with activation grids"),
            ),
            Entry(
                "artifact",
                "The file that a runtime loads, written by the conversion or given to validate.",
            ),
            Entry(
                "as built",
                "What is in the artifact beside the weights' values, against what the converter derives from "
                "the checkpoint again. A difference is deciding if it bears on what the model computes, "
                "reads or says, and descriptive if not. Only deciding ones fail a gate.",
                ("differs", "where", "expected", "found", "decides something"),
            ),
            Entry(
                "baseline",
                "The same checkpoint requantised as an ordinary converter would do it, run in the same "
                "runtime and compared with the same reference. It is judged by no gate.",
                ("naive-q4_0",),
            ),
            Entry(
                "bits per weight",
                "Bits that the stored weights take, with their scales, divided by the number of weights.",
            ),
            Entry(
                "block",
                "Neighbouring values of a row that share one scale: 32 in Q4_0.",
                ("row",),
            ),
            Entry(
                "blocks with the checkpoint's codes",
                "Share of the blocks whose codes are those that the checkpoint stores, whatever their scale "
                "is. The largest error of a scale is that of these blocks, relative.",
                ("largest error of a scale",),
            ),
            Entry(
                "class of a block",
                "exact; scale not representable: the codes are the trained ones, but no scale of the "
                "artifact's type gives the values; off the lattice: the checkpoint's values are no codes "
                "times a scale; wrong: anything else.",
                (
                    "class",
                    "blocks whose scale the type cannot hold",
                    "blocks on no lattice in the checkpoint",
                    "wrong blocks",
                ),
            ),
            Entry(
                "command",
                "A command line that makes the same again. Where it names a file or a directory, the name "
                "stands without its place.",
            ),
            Entry(
                "decode_mean_kld",
                "Gate: the mean KLD between logits of tokens that are decoded one by one through the cache "
                "and logits of the same tokens computed at once.",
                ("decoding", "mean KLD of decoding"),
            ),
            Entry(
                "engine",
                "The program that users run the artifact with: it makes tokens of text, prompts of chats, "
                "and text of tokens.",
            ),
            Entry(
                "engine_gap",
                "Gate: where the engine's likeliest text leaves the reference's, how much likelier the "
                "reference holds its own token, in nats. The largest over all prompts.",
                ("its text",),
            ),
            Entry(
                "engine_mean_abs",
                "Gate: how far the engine's log-probability of a token of the text is from the reference's, "
                "in nats, on average.",
                ("its scores",),
            ),
            Entry(
                "blocks recovered exactly",
                "Blocks written as codes and a scale that give the checkpoint's values, rounded to bf16, bit "
                "for bit. It was verified block by block while the file was written; nothing was read back. "
                "Others have a scale that the type cannot hold and that is rounded, or lie on no lattice.",
                ("scales rounded", "blocks on no lattice"),
            ),
            Entry(
                "matrices as trained codes",
                "Matrices of the text model that are stored as the codes that training settled on.",
            ),
            Entry(
                "engine_same_ends",
                "Gate: the share of tokens that end an answer which checkpoint and engine have in common.",
                ("its ends",),
            ),
            Entry(
                "engine_same_prompts",
                "Gate: the share of chats of which the engine makes the checkpoint's prompt, token by token.",
                ("its prompts", "its template"),
            ),
            Entry(
                "engine_same_tokens",
                "Gate: the share of texts of which the engine makes the checkpoint's tokens.",
                ("its tokens",),
            ),
            Entry(
                "exact blocks",
                "Share of the blocks on the lattice whose values, rounded to bf16, are the checkpoint's bit "
                "for bit.",
                ("exact",),
            ),
            Entry(
                "exact_fraction",
                "Gate: the exact blocks among those that the artifact's type can hold exactly.",
            ),
            Entry(
                "exact_values",
                "Gate: the share of values outside the lattice (norms, scalars, other matrices) that are "
                "what the target's rule makes of the checkpoint's, bit for bit.",
            ),
            Entry("files", "Size of all files that the artifact consists of, in decimal units of bytes."),
            Entry(
                "gate",
                "A limit that a figure must keep. Where one does not, the target fails; where one did "
                "not run, the target is not fully proven.",
                ("gates",),
            ),
            Entry(
                "graph_kld",
                "Gate: the mean KLD between the logits of the artifact, run so that nothing is rounded, and "
                "transformers' on the same weights. What is wrong in metadata or graph shows here.",
                ("without rounding",),
            ),
            Entry(
                "greedy text",
                "The text of the likeliest tokens, of the reference and of the engine, from the same prompt.",
                ("after", "both say", "then", "first other token"),
            ),
            Entry(
                "keys and values",
                "Memory that the runtime takes for the attention's keys and values before the first token.",
            ),
            Entry(
                "KLD",
                "KL divergence: how far the probabilities of the next token, as the artifact gives them, are "
                "from the reference's, in nats. 0 is equal.",
                ("99.9 % KLD", "maximum KLD", "p999_kld", "max_kld"),
            ),
            Entry(
                "largest error",
                "The largest distance between a value of the artifact and the checkpoint's, in ulp: steps of "
                "the checkpoint's precision, to which both are rounded. It is bf16, f16 or f32, and f32 of a "
                "checkpoint that stores codes and scales. 0: every value is the same number.",
            ),
            Entry(
                "largest logit difference",
                "The largest difference between two logits of the same token.",
                ("max_abs",),
            ),
            Entry(
                "lattice",
                "The integer codes times scales that QAT trained the weights to lie on.",
                ("stored as", "type", "stored in the checkpoint as"),
            ),
            Entry("left out", "Parts of the checkpoint that no target of this conversion has a place for."),
            Entry(
                "mean KLD",
                "The mean of the KLD over all positions, in nats; also the gate mean_kld.",
                ("mean_kld",),
            ),
            Entry("nat", "The unit of natural logarithms: 1 nat is a factor of 2.718 in probability."),
            Entry(
                "on_lattice_fraction",
                "Gate: the share of blocks of the matrices which QAT trains that lie on a lattice in the "
                "checkpoint. Of a checkpoint without QAT it is near 0.",
            ),
            Entry(
                "options",
                "By which options the artifact is taken to be converted, and what tells them.",
            ),
            Entry(
                "part",
                "What a checkpoint has beside its text model.",
                ("vision", "audio", "drafter"),
            ),
            Entry(
                "perplexity",
                "How many tokens the model is as good as undecided between, on the text. It is told as its "
                "distance from the reference's, in percent.",
                ("ppl",),
            ),
            Entry(
                "position",
                "A place in the text at which the probabilities of the next token are compared.",
                ("text",),
            ),
            Entry(
                "reference",
                "transformers on the original checkpoint, in the type that is named.",
            ),
            Entry(
                "relative RMS error of codes x scales",
                "Root mean square of the differences between the artifact's values and the checkpoint's, "
                "over that of the checkpoint's, before anything is rounded. The artifact holds codes times "
                "scales. A bf16 checkpoint holds the same products rounded to bf16, which is up to 0.4 % "
                "off. So an exact tensor has 0 ulp, against the checkpoint's bf16, and about 0.0015 here.",
            ),
            Entry(
                "RMS Δp",
                "Root mean square of the difference between the probabilities that artifact and reference "
                "give the token that follows.",
                ("rms_delta_p",),
            ),
            Entry(
                "runtime",
                "The program that runs the artifact, and how it was run.",
                ("run with", "runs in", "signatures", "warning", "could not be validated"),
            ),
            Entry(
                "runtime alone",
                "The mean KLD between the runtime's logits and float32 logits of the artifact's own weights: "
                "what the runtime's rounding of activations costs, whatever the weights are.",
            ),
            Entry(
                "same top token",
                "Share of positions where artifact and reference find the same token the likeliest.",
                ("same_top_p",),
            ),
            Entry(
                "same_as_built",
                "Gate: the number of deciding differences from what is built of the checkpoint.",
            ),
            Entry(
                "source",
                "The checkpoint: a repository at a commit, or the name of a directory.",
                ("source commit of",),
            ),
            Entry(
                "target",
                "A format that a checkpoint is converted into.",
                ("made by",),
            ),
            Entry("tensor", "A named array of weights."),
            Entry(
                "verdict",
                "passed: every gate ran and passed. not fully proven: none failed, one did not run. proven: "
                "every target passed. not validated: nothing was run.",
            ),
            Entry(
                "ways to run it",
                "Ways to run the same artifact that only measuring can tell apart. The fastest that passes "
                "its gates is kept.",
                ("figure", "accuracy level", "activations", "decoded tokens per second"),
            ),
            Entry(
                "weights",
                "The tensors of the text model, read back from the artifact and compared with the "
                "checkpoint's.",
            ),
            Entry(
                "weights alone",
                "The mean KLD between float32 logits of the artifact's own weights and the reference's: what "
                "the weights cost, whatever the runtime is.",
            ),
            Entry("weights in them", "Size of the stored weights, with their scales, within the files."),
        ),
        key=lambda entry: entry.term.lower(),
    )
)
_BY_LABEL: Final = {label: entry for entry in ENTRIES for label in (entry.term, *entry.labels)}


def entry_of(label: str) -> Entry | None:
    """The entry that explains a label of a table; that of a part's gate is the gate's. ``None`` if there is
    none, as for the name of a tensor."""
    for text in (label.strip(), label.strip().rpartition(": ")[2]):
        words = text.split(" ")
        for length in range(len(words), 0, -1):
            if entry := _BY_LABEL.get(" ".join(words[:length])):
                return entry
    return None


def entries_of(labels: Iterable[str]) -> Iterator[Entry]:
    """The entries that explain ``labels``, each once, sorted by term."""
    needed = {found.term for label in labels if (found := entry_of(label))}
    return (entry for entry in ENTRIES if entry.term in needed)
