"""Keys of ``config.json`` that the families spell alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from converter.checkpoint.architecture.layers import FULL, SLIDING
from converter.checkpoint.special_tokens import EOS_ID
from converter.system.untrusted import Settings, shown

#: Bounds on counts, far above any real model, so that a hostile file cannot ask for endless work.
MOST_LAYERS: Final = 1024
WIDEST: Final = 1 << 20
LONGEST_ROW: Final = 1 << 22
LARGEST_VOCABULARY: Final = 1 << 21
_ATTENTION: Final = {"sliding_attention": SLIDING, "full_attention": FULL}
Shapes = dict[str, tuple[int, ...]]


def text_settings(config: Settings, model_type: str, text_types: Mapping[str, str]) -> Settings:
    """The settings of the text model: ``config`` itself, or its ``text_config``.

    ``text_types`` maps a multimodal ``model_type`` to the one its ``text_config`` has.
    """
    if model_type not in text_types:
        return config
    text = config.section("text_config")
    if text is None:
        raise config.error("text_config", "is missing")
    expected = text_types[model_type]
    text.require("model_type", (expected,), expected)
    return text


def attention_types(text: Settings, layers: int, pattern: int) -> list[str]:
    """``"sliding"`` or ``"full"`` per layer; absent ``layer_types`` make every ``pattern``-th one full."""
    names = text.values.get("layer_types")
    if names is None:
        return [SLIDING if (index + 1) % pattern else FULL for index in range(layers)]
    if not isinstance(names, list):
        raise text.error("layer_types", f"is {shown(names)}, expected a list")
    if len(names) != layers:
        raise text.error("layer_types", f"has {len(names)} entries for {layers} layers")
    for name in names:
        if not isinstance(name, str) or name not in _ATTENTION:
            raise text.error("layer_types", f"holds {shown(name)}, expected {' or '.join(_ATTENTION)}")
    return [_ATTENTION[name] for name in names]


def end_tokens(config: Settings, text: Settings, default: int | None, vocabulary: int) -> tuple[int, ...]:
    """Ids that end a text: those of the whole model where it names any, else the text model's."""
    settings = config if config.values.get(EOS_ID) is not None else text
    value = settings.values.get(EOS_ID, default)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
        if type(one) is not int or not 0 <= one < vocabulary:
            raise settings.error(EOS_ID, f"is {shown(value)}, expected ids below {vocabulary}")
    return tuple(dict.fromkeys(ids))


def token(text: Settings, key: str, default: int | None, vocabulary: int) -> int | None:
    """One token id, or ``None`` for ``null``."""
    return text.optional_integer(key, default, high=vocabulary - 1)


def heads(settings: Settings, query_heads: int, default: int | None) -> int:
    """The number of KV heads, which must divide the query heads."""
    count = settings.integer("num_key_value_heads", default, high=query_heads)
    if query_heads % count:
        raise settings.error("num_key_value_heads", f"is {count}, which does not divide {query_heads} heads")
    return count


def mlp(prefix: str, hidden: int, feed_forward: int) -> Shapes:
    """The gated MLP's three matrices."""
    return {
        f"{prefix}mlp.gate_proj.weight": (feed_forward, hidden),
        f"{prefix}mlp.up_proj.weight": (feed_forward, hidden),
        f"{prefix}mlp.down_proj.weight": (hidden, feed_forward),
    }


def norms(prefix: str, hidden: int, names: tuple[str, ...]) -> Shapes:
    """RMS norms over the hidden size."""
    return {f"{prefix}{name}.weight": (hidden,) for name in names}


#: What may stand before a canonical name: multimodal, older multimodal, text-only, bare base model.
PREFIXES: Final = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")
