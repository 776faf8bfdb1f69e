# SPDX-License-Identifier: Apache-2.0
"""``ziggurat show MODEL``: what a model is, and whether it can be served; reads headers and small files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ziggurat.cli.flags import Parser
from ziggurat.cli.model_argument import add_model, model_of
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.units import format_bytes

_MAX_TOKENS_SHOWN = 8


def parser() -> Parser:
    """Its flags."""
    parser = Parser(
        "ziggurat show", "Explain a model: architecture, bytes, tokenizer, chat template; why it is refused if it is."
    )
    add_model(parser)
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Print it. A model that is refused is explained all the same; only one that is not there is an error.

    Raises:
        ModelNotFound: there is nothing of that name.
        ModelError: neither folder nor GGUF.
    """
    namespace = parser().parse(argv)
    from ziggurat.engine.describe import describe_model

    facts = describe_model(model_of(namespace))
    emit(namespace, facts, lambda: as_text(facts))
    return 0


def as_text(facts: Mapping[str, Any]) -> str:
    """The same for people."""
    verdict = "can be served" if facts["is_supported"] else f"is refused: {facts['problems'][0]}"
    sections = [f"{facts['model']} {verdict}"]
    rows = [*_model_rows(facts), *_text_rows(facts)]
    sections.append(table(rows))
    for key, title in (("parts", "part"), ("formats", "format")):
        storage: list[Mapping[str, Any]] = facts[key] or []
        if storage:
            sections.append(_storage_table(storage, title))
    sections += [f"also: {problem}" for problem in facts["problems"][1:]]
    return "\n\n".join(sections)


def _model_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("path", f"{facts['path']} ({facts['kind']})"), ("architecture", facts["architecture"] or "unknown")]
    if facts["num_parameters"] is None:
        return rows
    scaling = "" if facts["rope_scaling"] == "default" else f", {facts['rope_scaling']} scaling"
    stored = facts["stored_format"]
    weights = (
        stored if stored == facts["weight_format"] else f"{stored}, decoded to {facts['weight_format']} when loaded"
    )
    tied = ", embeddings tied to the head" if facts["is_head_tied"] else ""
    heads = f"{facts['num_attention_heads']} heads, {facts['num_key_value_heads']} for keys and values, of {facts['head_dim']}"
    spans = ", ".join(_span(group) for group in facts["kv_groups"])
    return [
        *rows,
        ("parameters", f"{facts['num_parameters']:,} in {weights}{tied}"),
        ("shape", f"{facts['num_layers']} layers of {facts['hidden_size']}, {heads}"),
        ("context", f"{facts['context_tokens']:,} tokens; rotary base {facts['rope_theta']:,.0f}{scaling}"),
        ("KV per token", f"{format_bytes(facts['kv_bytes_per_token'])} in {facts['kv_format']}; {spans}"),
        ("vocabulary", f"{facts['vocab_size']:,} rows"),
    ]


def _span(group: Mapping[str, Any]) -> str:
    window = group["window_tokens"]
    return f"{group['num_layers']} layers with {f'a window of {window:,}' if window else 'full attention'}"


def _text_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    tokenizer, template = facts["tokenizer"], facts["chat_template"]
    if tokenizer is None:
        return [("tokenizer", "none: token ids only")]
    pre = f", cut by {tokenizer['pre_tokenizer']}" if tokenizer["pre_tokenizer"] else ""
    special = ", ".join(f"{name.removesuffix('_token')} {text}" for name, text in facts["special_tokens"].items())
    control = facts["control_tokens"] or []
    more = f" and {len(control) - _MAX_TOKENS_SHOWN:,} more" if len(control) > _MAX_TOKENS_SHOWN else ""
    return [
        ("tokenizer", f"{tokenizer['kind']}, {tokenizer['num_tokens']:,} tokens{pre}"),
        ("special tokens", special or "none named"),
        ("control tokens", f"{' '.join(control[:_MAX_TOKENS_SHOWN])}{more}" if control else "none"),
        ("chat template", f"{len(template):,} characters of Jinja" if template else "none: completions only"),
    ]


def _storage_table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    lines = [(title, "tensors", "parameters", "bytes in files")]
    for row in rows:
        size = "unknown" if row["num_bytes"] is None else format_bytes(row["num_bytes"])
        lines.append((str(row[title]), f"{row['num_tensors']:,}", f"{row['num_parameters']:,}", size))
    return table(lines, right=(1, 2, 3))
