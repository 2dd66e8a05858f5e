"""A small decoder as a TFLite file, made by hand, that can be given the faults of a bad export.

An embedding of tokens and one of positions, one layer of attention with its two caches, and a head; float32
throughout. Names, shapes and layouts of inputs and outputs are those of the ``litert`` target.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from support.litert_graph import FLOAT, INT, graph

VOCABULARY = 200
HEADS, SIZE = 2, 8
HIDDEN = HEADS * SIZE
CONTEXT = 48
#: Position whose keys are no numbers with the fault ``"nan"``.
POISON = 5


def tables(vocabulary=VOCABULARY, seed=0):
    """The weights by name: matrices as ``FULLY_CONNECTED`` takes them, ``[out, in]``."""
    random = np.random.default_rng(seed)
    shapes = {
        "tokens": (vocabulary, HIDDEN),
        "positions": (CONTEXT, HIDDEN),
        "query": (HIDDEN, HIDDEN),
        "key": (HIDDEN, HIDDEN),
        "value": (HIDDEN, HIDDEN),
        "head": (vocabulary, HIDDEN),
    }
    return {name: (random.normal(size=shape) / 2).astype(np.float32) for name, shape in shapes.items()}


def at_once(tokens):
    """Logits ``[positions, vocabulary]`` of a sequence, in NumPy."""
    weights = tables()
    x = weights["tokens"][tokens] + weights["positions"][: len(tokens)]
    q, k, v = ((x @ weights[name].T).reshape(-1, HEADS, SIZE) for name in ("query", "key", "value"))
    scores = np.einsum("qhd,khd->hqk", q, k)
    scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    y = np.einsum("hqk,khd->qhd", shares, v).reshape(-1, HIDDEN)
    return (x + y) @ weights["head"].T


class _Graph:
    def __init__(self, function, length, weights):
        self.f, self.length, self.weights = function, length, weights

    def constant(self, value, dtype=np.int32):
        data = np.asarray(value, dtype)
        kind = INT if data.dtype == np.int32 else FLOAT
        return self.f.tensor(f"constant_{len(self.f.graph.tensors)}", data.shape, kind, data)

    def op(self, name, inputs, shape, options=None, version=1, kind=FLOAT):
        out = self.f.tensor(f"t{len(self.f.graph.tensors)}", shape, kind)
        self.into(name, inputs, out, options, version)
        return out

    def into(self, name, inputs, out, options=None, version=1):
        number = 0
        if options is not None:
            number = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.f.operator(name, inputs, [out], options, number, version)

    def reshape(self, x, shape):
        return self.op("RESHAPE", [x, self.constant(shape)], shape)

    def transpose(self, x, order, shape):
        return self.op("TRANSPOSE", [x, self.constant(order)], shape)

    def product(self, x, name, rows, out=None):
        weight = self.constant(self.weights[name], np.float32)
        options = schema.FullyConnectedOptionsT()
        if out is None:
            out = self.f.tensor(f"t{len(self.f.graph.tensors)}", (self.length, rows))
        self.into("FULLY_CONNECTED", [x, weight, -1], out, options, 2)
        return out

    def gather(self, name, index):
        table = self.constant(self.weights[name], np.float32)
        return self.op("GATHER", [table, index], (self.length, HIDDEN), schema.GatherOptionsT(), 2)

    def add(self, a, b, shape):
        return self.op("ADD", [a, b], shape, schema.AddOptionsT())

    def matmul(self, a, b, shape, turned=False):
        options = schema.BatchMatMulOptionsT()
        options.adjY = turned
        return self.op("BATCH_MATMUL", [a, b], shape, options)


def _embedded(g, embedded):
    """Tokens, or what another model has made of them, to ``[length, HIDDEN]``."""
    n = g.length
    if embedded:
        return g.reshape(g.f.argument("embeddings", (1, n, HIDDEN)), (n, HIDDEN))
    tokens = g.f.argument("tokens", (1, n), INT)
    return g.gather("tokens", g.op("RESHAPE", [tokens, g.constant([n])], (n,), kind=INT))


def _build(length, decode, fault, weights, embedded, function):
    g = _Graph(function, length, weights)
    n, context = length, CONTEXT // 2 if fault == "context" and not decode else CONTEXT
    x = _embedded(g, embedded)
    positions = g.f.argument("input_pos", (n,), INT)
    mask = g.f.argument("mask", (1, 1, n, context))
    if fault == "input":
        g.f.argument("pixels", (1,))
    x = g.add(x, g.gather("positions", positions), (n, HIDDEN))
    keys, values = _caches(g, x, positions, context, 0 if fault == "lost" and not decode else 1)
    if decode:
        if fault == "nan":
            bad = np.zeros((CONTEXT, HIDDEN), np.float32)
            bad[POISON] = np.nan
            g.weights = {**weights, "bad": bad}
            x = g.add(x, g.gather("bad", positions), (n, HIDDEN))
        _attend(g, x, mask, keys, values)


def _caches(g, x, positions, context, factor):
    """The caches with keys and values of ``x`` from the first position on, times ``factor``."""
    options = schema.SliceOptionsT()
    first = g.op("SLICE", [positions, g.constant([0]), g.constant([1])], (1,), options, kind=INT)
    zero, made = g.constant([0]), []
    for part, name, order, place in (
        ("k", "key", (0, 2, 1, 3), (zero, zero, first, zero)),
        ("v", "value", (0, 2, 3, 1), (zero, zero, zero, first)),
    ):
        shape = [(1, g.length, HEADS, SIZE)[axis] for axis in order]
        whole = [(1, context, HEADS, SIZE)[axis] for axis in order]
        new = g.reshape(g.product(x, name, HIDDEN), (1, g.length, HEADS, SIZE))
        new = g.transpose(new, order, shape)
        new = g.op("MUL", [new, g.constant(factor, np.float32)], shape, schema.MulOptionsT())
        indices = g.op("CONCATENATION", list(place), (4,), schema.ConcatenationOptionsT(), kind=INT)
        old = g.f.argument(f"kv_cache_{part}_0", whole)
        made.append(g.f.result(f"kv_cache_{part}_0", whole))
        options = schema.DynamicUpdateSliceOptionsT()
        g.into("DYNAMIC_UPDATE_SLICE", [old, new, indices], made[-1], options)
    return made


def _attend(g, x, mask, keys, values):
    """The logits of ``x``, which sees of the caches what ``mask`` lets it see."""
    n = g.length
    q = g.reshape(g.product(x, "query", HIDDEN), (1, n, HEADS, SIZE))
    q = g.transpose(q, (0, 2, 1, 3), (1, HEADS, n, SIZE))
    scores = (1, HEADS, n, CONTEXT)
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    shares = g.add(g.matmul(q, keys, scores, turned=True), mask, scores)
    shares = g.op("SOFTMAX", [shares], scores, options)
    y = g.matmul(shares, values, (1, HEADS, n, SIZE), turned=True)
    y = g.reshape(g.transpose(y, (0, 2, 1, 3), (1, n, HEADS, SIZE)), (n, HIDDEN))
    rows = len(g.weights["head"])
    logits = g.product(g.add(x, y, (n, HIDDEN)), "head", rows)
    g.into("RESHAPE", [logits, g.constant([1, n, rows])], g.f.result("logits", (1, n, rows)))


def write_decoder(path, *, lengths=(16,), fault="", vocabulary=VOCABULARY, embedded=False, names=None):
    """Write a ``.tflite`` with a prefill of each of ``lengths`` tokens and ``decode``; returns ``path``.

    ``fault``: ``"lost"`` forgets the keys and values of a prefill, ``"nan"`` has logits that are no numbers
    at position ``POISON``, ``"context"`` half the context in a prefill, ``"input"`` an input more. With
    ``embedded`` another model embeds the tokens. ``names`` gives signatures other names.
    """
    weights = tables(vocabulary)
    sizes = (*lengths, 1)
    known = [*(f"prefill_{length}" for length in lengths), "decode"]
    builders = [
        partial(_build, size, name == "decode", fault, weights, embedded)
        for size, name in zip(sizes, known, strict=True)
    ]
    path.write_bytes(graph(*builders, names=[(names or {}).get(name, name) for name in known]))
    return path


def write_embedder(path, lengths=(16,)):
    """Write the model that makes ``embeddings`` of tokens; returns ``path``."""

    def build(length, function):
        g = _Graph(function, length, tables())
        tokens = g.f.argument("token_ids", (1, length), INT)
        tokens = g.op("RESHAPE", [tokens, g.constant([length])], (length,), kind=INT)
        shape = (1, length, HIDDEN)
        g.into("RESHAPE", [g.gather("tokens", tokens), g.constant(shape)], g.f.result("embeddings", shape))

    sizes = {f"prefill_embedder_{length}": length for length in lengths} | {"decode_embedder": 1}
    path.write_bytes(graph(*(partial(build, size) for size in sizes.values()), names=list(sizes)))
    return path
