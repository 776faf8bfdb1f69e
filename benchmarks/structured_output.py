# SPDX-License-Identifier: Apache-2.0
"""Structured output on a model: do answers follow 300 schemas and end by themselves, and what does the mask cost per token?

    python -m benchmarks.structured_output            # two minutes on two cores, the embedded model

Answers are checked by the jsonschema package. The cost is decoding at batch 8 with a mask (a schema that never lets the text end)
beside decoding without one, in turns, same prompts and numbers of tokens, median of the rounds.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks.report import publish
from benchmarks.schemas import make_schemas
from ziggurat import LLM, SamplingParams
from ziggurat.engine.grammar import GrammarCompiler, GrammarSpec
from ziggurat.errors import RequestError

PROMPT = [{"role": "user", "content": "Write a JSON document about a town."}]
BATCH = 8
ROUNDS = 9
TOKENS = 200


def compiler_of(llm: LLM) -> GrammarCompiler:
    """A compiler for the model."""
    engine = llm.engine
    assert engine.tokenizer is not None
    model = engine.model
    return GrammarCompiler(engine.tokenizer, model.vocab_size, model.eos_ids, model.max_model_len)


def validity(llm: LLM, count: int, max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
    """How many answers end, how many are valid, how many were closed because their tokens ran out."""
    compiler, schemas = compiler_of(llm), make_schemas(count, seed)
    masks, kept, refused = [], [], []
    began_s = time.perf_counter()
    for schema in schemas:
        try:
            masks.append(compiler.mask(GrammarSpec("json_schema", json.dumps(schema)), max_tokens))
            kept.append(schema)
        except RequestError as error:
            refused.append(str(error))
    compile_s = time.perf_counter() - began_s
    params = [
        SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=index, logits_mask=mask)
        for index, mask in enumerate(masks)
    ]
    outputs = llm.chat([PROMPT] * len(params), params)
    counts: collections.Counter[str] = collections.Counter()
    for schema, mask, output in zip(kept, masks, outputs, strict=True):
        answer = output.outputs[0]
        counts[str(answer.finish_reason)] += 1
        if answer.finish_reason == "stop":
            counts["valid" if is_valid(schema, answer.text) else "invalid"] += 1
            counts["closed"] += mask.was_closed(len(answer.token_ids))
    return {
        "schemas": count,
        "refused": len(refused),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "finished_by_stop": counts["stop"],
        "finished_by_length": counts["length"],
        "valid": counts["valid"],
        "invalid": counts["invalid"],
        "closed_at_max_tokens": counts["closed"],
        "compile_ms_mean": 1000 * compile_s / count,
    }


def is_valid(schema: dict[str, Any], text: str) -> bool:
    """By jsonschema's validator, formats that it knows without further packages included."""
    checker = jsonschema.FormatChecker(formats=("date", "email", "ipv4", "uuid"))
    try:
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))
    except (jsonschema.ValidationError, ValueError):
        return False
    return True


def slowdown(llm: LLM, rounds: int) -> dict[str, Any]:
    """Seconds of decoding with and without a mask, in turns."""
    item = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "size": {"type": "integer"}}}
    schema = {"type": "array", "items": {**item, "required": ["name", "size"]}, "minItems": 1000}
    compiler = compiler_of(llm)

    def run(has_mask: bool) -> tuple[float, float]:
        """(wall, CPU) seconds."""
        mask = compiler.mask(GrammarSpec("json_schema", json.dumps(schema))) if has_mask else None
        params = SamplingParams(max_tokens=TOKENS, temperature=1.0, ignore_eos=True, seed=1, logits_mask=mask)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        outputs = llm.chat([PROMPT] * BATCH, params)
        assert all(len(output.outputs[0].token_ids) == TOKENS for output in outputs)
        return time.perf_counter() - began_s, time.process_time() - began_cpu_s

    run(True), run(False)
    pairs = [(run(False), run(True)) for _ in range(rounds)]
    plain_s, masked_s = (statistics.median(wall for wall, _ in times) for times in zip(*pairs, strict=True))
    plain_cpu_s, masked_cpu_s = (statistics.median(cpu for _, cpu in times) for times in zip(*pairs, strict=True))
    ratios = [masked / plain - 1 for (plain, _), (masked, _) in pairs]
    return {
        "batch": BATCH,
        "tokens_per_sequence": TOKENS,
        "rounds": rounds,
        "plain_tokens_per_s": BATCH * TOKENS / plain_s,
        "masked_tokens_per_s": BATCH * TOKENS / masked_s,
        "slowdown_ratio": masked_s / plain_s - 1,
        "slowdown_ratio_spread": [min(ratios), max(ratios)],
        "slowdown_ratio_of_cpu_time": masked_cpu_s / plain_cpu_s - 1,
        "slowdown_ratio_of_best_rounds": min(m for _, (m, _) in pairs) / min(p for (p, _), _ in pairs) - 1,
    }


def main() -> None:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--schemas", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=None)
    asked = parser.parse_args()
    with LLM(asked.model, memory="512MiB", max_num_seqs=BATCH) as llm:
        answers = validity(llm, asked.schemas, asked.max_tokens, asked.temperature, asked.seed)
        cost = slowdown(llm, asked.rounds)
    publish("python -m benchmarks.structured_output", asked.output, model=asked.model, validity=answers, cost=cost)


if __name__ == "__main__":
    main()
