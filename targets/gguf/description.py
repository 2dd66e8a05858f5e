"""What a GGUF says of its model to people: name, size, licence, languages, tags and origin.

The keys are those of ggml's ``docs/gguf.md``, their values those that gguf-py's ``Metadata`` derives from a
repository and its model card.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

import gguf

from converter.checkpoint.card import Card
from targets.gguf.family import GgufFamily
from targets.gguf.header import Header, Items
from targets.target import PlannedTensor

#: Where repositories' addresses begin.
HUB: Final = "https://huggingface.co"
#: Words in ``general.name`` by which llama.cpp takes other tokens' spaces away (``llama-vocab.cpp``,
#: ``_set_token_attr``): a name that has one is no mere name.
NAMES_THAT_DECIDE: Final = ("phi-3", "phi3", "modern-bert")
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")


def add_description(
    header: Header,
    card: Card,
    options: Mapping[str, object],
    tensors: Iterable[PlannedTensor],
    family: GgufFamily,
) -> None:
    """Add what describes the model. Of ``options`` the model's ``name``, a ``license`` that goes before the
    card's, ``repo`` and ``revision`` count; the size is that of all ``tensors``."""
    header.add_name(title(card, options, family))
    header.add_size_label(size_label(tensors))
    if license := options.get("license") or card.license:
        header.add_license(str(license))
    if card.license_name:
        header.add_license_name(card.license_name)
    if card.license_link:
        header.add_license_link(card.license_link)
    if repo := options.get("repo"):
        url = f"{HUB}/{repo}"
        header.add_source_repo_url(url)
        if revision := options.get("revision"):
            header.add_source_url(f"{url}/tree/{revision}")
    _add_base_models(header, card.base_models)
    if card.tags:
        header.add_tags(Items(card.tags))
    if card.languages:
        header.add_languages(Items(card.languages))


def title(card: Card, options: Mapping[str, object], family: GgufFamily) -> str:
    """A readable name: the card's, else the repository's or the given one in words, as gguf-py writes it;
    the family's where each would decide something."""
    repo, name = options.get("repo"), str(options["name"])
    names = [card.name, *(_in_words(str(one).rpartition("/")[2]) for one in (repo, name) if one)]
    good = [one for one in names if one and not any(word in one.lower() for word in NAMES_THAT_DECIDE)]
    return good[0] if good else family.title


def size_label(tensors: Iterable[PlannedTensor]) -> str:
    """The size as gguf-py computes it from the numbers of values (``GGUFWriter.get_total_parameter_count``):
    ``5.1B``, or with experts their number and the size of the model with one of them, ``128x2.6B``."""
    shared = one_expert = 0
    counts: list[int] = []
    for tensor in tensors:
        size = math.prod(tensor.shape)
        if "_exps." in tensor.stored_as and len(tensor.shape) >= 3:
            counts.append(tensor.shape[0])
            one_expert += size // tensor.shape[0]
        else:
            shared += size
    experts = sum(counts) // len(counts) if counts else 0
    label: str = gguf.size_label(shared + one_expert, shared, one_expert, experts)
    return label


def _in_words(name: str) -> str:
    words: str = gguf.Metadata.id_to_title(name)
    return words or name


def _add_base_models(header: Header, models: tuple[str, ...]) -> None:
    """The models that this one was made from: repositories of the Hub, addresses, or mere names."""
    if not models:
        return
    header.add_base_model_count(len(models))
    for index, model in enumerate(models):
        repo = model.removeprefix(f"{HUB}/")
        if _REPOSITORY.fullmatch(repo):
            owner, _, name = repo.partition("/")
            version = gguf.Metadata.get_model_id_components(repo)[4]
            header.add_base_model_name(index, _in_words(name))
            header.add_base_model_organization(index, _in_words(owner))
            if version:
                header.add_base_model_version(index, version)
            header.add_base_model_repo_url(index, f"{HUB}/{repo}")
        elif "://" in model:
            header.add_base_model_repo_url(index, model)
        else:
            header.add_base_model_name(index, model)
