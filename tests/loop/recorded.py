"""What stands in for a CUDA graph, and the drafters that are played from it."""

from __future__ import annotations

import torch
from tape import Tape

import specdec
from drafters import (
    AdapterDrafter,
    DFlashDrafter,
    Eagle3Drafter,
    EagleDrafter,
    EarlyExitDrafter,
    HybridDrafter,
    HydraDrafter,
    MedusaDrafter,
    ModelDrafter,
    MTPDrafter,
    NgramDrafter,
    NullDrafter,
    ReDrafter,
    StreamDrafter,
    SuffixDrafter,
)
from drafters.adapter_head import AdapterHead
from drafters.dflash import DFlashHead
from drafters.eagle import EagleHead
from drafters.eagle3_head import Eagle3Head
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.mtp import MTPHead
from drafters.redrafter import RecurrentHead
from drafters.stream_head import StreamHead
from drafters.streaming import StreamingDrafter, Successors
from specdec import Block, Coupled, Match, Ratio, Sampling
from specdec.runtime import load
from specdec.runtime.filling import Filling
from specdec.runtime.held import flatten, rebuild
from specdec.runtime.replay import Recording, Replay
from verifiers import FullVerifier

ROWS = [[[1, 2, 3, 1, 2], [9], [4] * 11], [[5, 6], [7, 8, 9], [1] * 4]]
WARM = Sampling(temperature=1.0)
KINDS = ["llama", "gemma3-hybrid"]
RULES = [(Sampling(), Ratio()), (WARM, Ratio()), (WARM, Block()), (WARM, Match()), (WARM, Coupled())]


def network(model):
    return load(model).model.network


STREAMS = Successors.of(torch.arange(128).roll(5), 3, "cpu")
DRAFTERS = {
    "plain": lambda model: NullDrafter(),
    "ngram": lambda model: NgramDrafter(length=4),
    "suffix": lambda model: SuffixDrafter(),
    "chain": lambda model: ModelDrafter(model, length=4),
    "streaming": lambda model: StreamingDrafter(load(model).model, STREAMS, length=4),
    "tree": lambda model: ModelDrafter(model, length=3, width=2, nodes=5),
    "static tree": lambda model: ModelDrafter(model, tree=[[0], [2], [0, 0], [0, 1], [2, 0], [0, 1, 0]]),
    "confident chain": lambda model: ModelDrafter(model, length=4, confidence=0.1),
    "early exit": lambda model: EarlyExitDrafter(exit_layer=1, length=3),
    "early exit tree": lambda model: EarlyExitDrafter(exit_layer=1, length=2, width=2),
}
# Drafters that read states of the target.
HEADS = {
    "eagle": lambda model: EagleDrafter(eagle(model), length=3),
    "eagle 3": lambda model: Eagle3Drafter(eagle3(model), length=3),
    "eagle 3 tree": lambda model: Eagle3Drafter(eagle3(model), length=3, width=2, nodes=5),
    "streams": lambda model: StreamDrafter(StreamHead.on(eagle3(model), 2), length=6, steps=3, candidates=2),
    "hybrid": lambda model: HybridDrafter(
        NgramDrafter(length=4, min_ngram=2), EagleDrafter(eagle(model), length=3)
    ),
    "adapter": lambda model: AdapterDrafter(adapter(model), length=3),
    "adapter tree": lambda model: AdapterDrafter(adapter(model), length=3, width=2, nodes=5),
    "mtp": lambda model: MTPDrafter(mtp(model), length=3),
    "dflash": lambda model: DFlashDrafter(dflash(model)),
    "dflash tree": lambda model: DFlashDrafter(dflash(model), length=3, width=2, nodes=5),
    "medusa": lambda model: MedusaDrafter(MedusaHeads.fresh(network(model), heads=3)),
    "medusa tree": lambda model: MedusaDrafter(MedusaHeads.fresh(network(model), shared_head=True), 3, 2, 5),
    "hydra": lambda model: HydraDrafter(HydraHeads.fresh(network(model), heads=3)),
    "redrafter beams": lambda model: ReDrafter(RecurrentHead.fresh(network(model)), 3, 2, 5),
}


def sizes(model):
    """Of a draft head, whose weights are to be random."""
    torch.manual_seed(3)
    vocabulary = model.config.vocab_size
    return {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": vocabulary}


def eagle3(model):
    return Eagle3Head(sizes(model), 32, layers=(1, 2, 3))


def eagle(model):
    return EagleHead({**sizes(model), "num_hidden_layers": 1})


def adapter(model):
    return AdapterHead({**sizes(model), "exit_layer": 1})


def mtp(model):
    return MTPHead(sizes(model))


def dflash(model):
    chosen = {"mask_token_id": 0, "target_layer_ids": [0, 2]}
    return DFlashHead({**sizes(model), "num_hidden_layers": 2, "block_size": 5, "dflash_config": chosen})


class Operations(Recording):
    """Stands in for a CUDA graph: as there, no Python runs when it is played again, and every number that Python
    read while it was recorded stays what it was."""

    def __init__(self, part, shape, leaves):
        self._inputs = [leaf.clone() for leaf in leaves]
        self._fill = Filling(self._inputs)
        with Tape(self._inputs) as tape:
            out: list[torch.Tensor] = []
            result = flatten(part(*rebuild(shape, iter(self._inputs))), out)
        self._play = tape.player(out)
        given = {id(tensor) for tensor in self._inputs}
        self._places = [tensor if id(tensor) in given else tensor.clone() for tensor in out]
        self._result = rebuild(result, iter(self._places))
        self._played = True

    def __call__(self, leaves):
        # A graph does nothing while it is recorded; this has done it, with what it is asked to do it with next.
        if not (self._played and all(map(torch.equal, self._inputs, leaves))):
            self._fill(leaves)
            for place, tensor in zip(self._places, self._play(*self._inputs), strict=True):
                place.copy_(tensor)
        self._played = False
        return self._result


def replaying(model, made):
    def record(*what):
        recording = Operations(*what)
        made.append(what)
        return recording

    verifier = FullVerifier(model)
    verifier.replay = Replay(record)
    return verifier


def compared(model, make, batches, sampling, rule):
    """Play batches of rows directly and from recordings; what was recorded."""
    made = []
    verifier, drafter = replaying(model, made), make(model)
    options = {"max_new_tokens": 30, "sampling": sampling, "acceptance": rule}
    for seed, rows in enumerate(batches):  # later generations play what the first has recorded
        expected = specdec.generate(FullVerifier(model), make(model), rows, seed=seed, **options)
        result = specdec.generate(verifier, drafter, rows, seed=seed, **options)
        assert torch.equal(result.tokens, expected.tokens)
        assert not result.metrics.faults
        assert [(e.row, e.accepted, e.committed) for e in result.trace.rounds] == [
            (e.row, e.accepted, e.committed) for e in expected.trace.rounds
        ]
    return made
