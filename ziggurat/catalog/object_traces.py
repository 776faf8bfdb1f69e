# SPDX-License-Identifier: Apache-2.0
"""Which objects are asked for, one after another, in five places where a cache of a memory system stands: lists of object numbers.

Recorded: feed-forward neurons of the embedded model, experts of a small mixture with random weights, KV prefix blocks of a real trace
where it is there. Made: adapters and whole experts, as Zipf streams. A seed gives one trace.

Two of the five were changed after a first look: adapters and whole experts were made as conversations that stay with theirs, on which
learned bits gained almost nothing over LRU, and are now the Zipf streams that S-LoRA and SN40L describe. They are the two on which the bits
do gain, so the count of families in `paging-succinct` is an optimistic one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from ziggurat.catalog.data import data_file, why_missing
from ziggurat.workload.arrivals import LENGTHS, unit_times
from ziggurat.workload.records import Arrival
from ziggurat.workload.sessions import SessionModel
from ziggurat.workload.traces.blocks import BlockNames

if TYPE_CHECKING:
    from torch import Tensor

    from ziggurat.programs import ops
    from ziggurat.training.interpreter import ProgramModel

MOONCAKE = "traces/mooncake_conversation.jsonl"
NEURONS_PER_BUNDLE = 8
ACTIVE_SHARE = 0.1
MIXTURE: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 1024,
}


def prefix_blocks(max_requests: int | None) -> tuple[list[int], str]:
    """Blocks of prompts: Mooncake's conversations, or made ones where that file is not there. Returns the trace and what it is."""
    path = data_file(MOONCAKE)
    arrivals: Iterable[Arrival]
    if path is not None:
        from ziggurat.workload.traces.reading import TraceReader

        arrivals, what, size = TraceReader(path), "recorded: Mooncake's conversations, blocks of 512 tokens", 512
    else:
        starts = [2 * start_s for start_s in unit_times(600, seed=0, burstiness=1.0)]
        arrivals = SessionModel(lengths=LENGTHS.get("azure-conversation")(1.0)).arrivals(starts)
        what, size = f"made: 600 conversations, blocks of 16 tokens; {why_missing(MOONCAKE)}", 16
    names = BlockNames(size)
    return [name for each in islice(arrivals, max_requests) for name in names.of(each) or ()], what


def conversations_with_objects(
    num_requests: int, *, num_objects: int, mean_turns: float, exponent: float, seed: int
) -> list[int]:
    """The object of each request: conversations of geometric length, several at a time, each with one object by a Zipf law."""
    dice = random.Random(seed)
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(num_objects)))
    active: list[tuple[int, int]] = []
    trace: list[int] = []
    while len(trace) < num_requests:
        if len(active) < 4 or dice.random() < 1 / mean_turns:
            active.append((dice.choices(range(num_objects), cum_weights=weights)[0], 0))
        place = dice.randrange(len(active))
        trace.append(active[place][0])
        if dice.random() < 1 / mean_turns:
            active.pop(place)
    return trace


def neuron_bundles(num_tokens: int) -> list[int]:
    """Bundles of `NEURONS_PER_BUNDLE` neurons of the embedded model in the order in which tokens of held-out prose need them.

    Of each layer the `ACTIVE_SHARE` with the largest activation; an object is a bundle of a layer."""
    from ziggurat.engine.resolve import EMBEDDED_FOLDER
    from ziggurat.programs.ops import GatedActivation
    from ziggurat.training.export import load_exported

    model, _ = load_exported(EMBEDDED_FOLDER)
    layers: list[list[list[int]]] = []

    def observe(op: ops.Op, result: Tensor) -> None:
        if isinstance(op, GatedActivation):
            strength = result.abs().unflatten(-1, (-1, NEURONS_PER_BUNDLE)).amax(-1)
            count = max(1, round(ACTIVE_SHARE * strength.shape[-1]))
            base = len(layers) * strength.shape[-1]
            layers.append((strength.topk(count).indices.sort().values + base).tolist())

    _observe(model, num_tokens, observe)
    return [bundle for token in zip(*layers, strict=True) for layer in token for bundle in layer]


def expert_routing(num_tokens: int) -> list[int]:
    """Experts of a mixture with random weights (4 layers of 32, 2 per token) in the order in which prose needs them."""
    from ziggurat.programs.architectures import build_program
    from ziggurat.programs.ops import Route
    from ziggurat.training.initial import random_weights
    from ziggurat.training.interpreter import ProgramModel

    program = build_program(MIXTURE, "train")
    model = ProgramModel(program)
    # Norms make what a layer sees of order 1, so wider routers choose by it and not by rounding.
    model.load_weights(random_weights(program, seed=0))
    layers: list[list[list[int]]] = []

    def observe(op: ops.Op, result: Tensor) -> None:
        if isinstance(op, Route):
            base = len(layers) * MIXTURE["num_local_experts"]
            layers.append((result[:, : op.top_k].long() + base).tolist())

    _observe(model, num_tokens, observe)
    return [expert for token in zip(*layers, strict=True) for layer in token for expert in layer]


def _observe(model: ProgramModel, num_tokens: int, observe: Any) -> None:
    import numpy as np
    import torch

    from ziggurat.engine.resolve import EMBEDDED_FOLDER
    from ziggurat.engine.tokenizer import Tokenizer
    from ziggurat.workload.prose import document

    dice, tokenizer, ids = np.random.default_rng(0), Tokenizer.load(EMBEDDED_FOLDER), list[int]()
    while len(ids) < num_tokens:
        ids += tokenizer.encode(document(dice, "held_out"))
    with torch.no_grad():
        model(torch.tensor([ids[:num_tokens]]), rows=torch.tensor([0]), observe=observe)
