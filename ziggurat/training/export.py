# SPDX-License-Identifier: Apache-2.0
"""Writing a trained model as a Hugging Face folder: bf16 safetensors, configuration, tokenizer, model card."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from ziggurat.programs.architectures import build_program
from ziggurat.programs.config import load_config
from ziggurat.training.checkpoint import Position
from ziggurat.training.config import TrainingConfig
from ziggurat.training.generated import END, TURN
from ziggurat.training.interpreter import ProgramModel
from ziggurat.training.tokenizer import save_tokenizer
from ziggurat.workload.tasks.layout import SPECIAL_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What the model card says of the run.

    Attributes:
        held_out: nats per token on held-out text, by source.
        accuracies: rows of `TaskResult.as_dict`, if the tasks were evaluated.
        note: what else is to be known of the run, one paragraph.
    """

    recipe: str
    position: Position
    held_out: dict[str, float]
    accuracies: tuple[dict[str, object], ...] = ()
    note: str = ""


def export_model(
    model: ProgramModel, config: TrainingConfig, tokenizer: Tokenizer, folder: Path, summary: RunSummary
) -> None:
    """Writes config.json, model.safetensors (bf16), tokenizer files, generation_config.json and MODEL_CARD.md."""
    save_tokenizer(tokenizer, folder, model.program.max_position)
    ids = {
        "bos_token_id": SPECIAL_TOKENS.index("<|begin|>"),
        "eos_token_id": [TURN, END],
        "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
    }
    _write_json(folder / "config.json", {**config.model, **ids, "dtype": "bfloat16"})
    _write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.7, "top_p": 0.95})
    tensors = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.named_weights().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "MODEL_CARD.md").write_text(model_card(model, config, summary), encoding="utf-8")


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of safetensors."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def load_exported(folder: Path) -> tuple[ProgramModel, Tokenizer]:
    """The interpreter with an exported folder's weights (as fp32), and its tokenizer."""
    model = ProgramModel(build_program(load_config(folder), "train"))
    model.load_weights(load_tensors(folder))
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def model_card(model: ProgramModel, config: TrainingConfig, summary: RunSummary) -> str:
    """The card: what it is, where it comes from, what it cost, what it can do."""
    program = model.program
    outside = f"and {len(config.texts)} text file(s) of the user" if config.texts else "and no outside text"
    lines = [
        "---",
        "license: apache-2.0",
        "language: en",
        "pipeline_tag: text-generation",
        "---",
        f"# {config.name}",
        "",
        f"{program.architecture}, {program.num_parameters():,} parameters (tied embeddings), {len(program.layers)} layers, "
        f"hidden size {program.hidden_size}, context {program.max_position} tokens, bf16.",
        "",
        "**Provenance.** Trained by Ziggurat's own trainer on what Ziggurat generates (retrieval tasks, template prose, chats) "
        f"{outside}. Initial weights: {_INITIAL[config.initial]}",
        "",
        "**Licence.** Apache-2.0.",
        "",
        *([f"**The run.** {summary.note}", ""] if summary.note else []),
        *_training_table(summary),
        *_accuracy_table(summary.accuracies),
        "",
        "**Limits.** Very small: it finds things in the text it is given and writes simple sentences, and knows almost nothing else.",
        "",
    ]
    return "\n".join(lines)


def _training_table(summary: RunSummary) -> list[str]:
    position = summary.position
    rows = [
        ("recipe", f"`{summary.recipe}`"),
        ("optimizer steps", f"{position.step:,}"),
        ("tokens seen", f"{position.tokens:,}"),
        ("wall time in steps", f"{position.train_time_s / 60:.1f} minutes, two CPU cores shared with other work"),
    ]
    rows += [
        (f"final running loss, {name}", f"{loss:.4f} nats per counted token")
        for name, loss in sorted(position.loss.items())
    ]
    for name, loss in sorted(summary.held_out.items()):
        rows.append((f"held-out perplexity, {name}", f"{math.exp(loss):.2f} ({loss:.4f} nats per token)"))
    return ["| training | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _accuracy_table(accuracies: tuple[dict[str, object], ...]) -> list[str]:
    if not accuracies:
        return []
    lines = ["", "| task | length (tokens) | items | accuracy | 95 % Wilson interval |", "|---|---|---|---|---|"]
    for row in accuracies:
        interval = f"{row['wilson_low']:.3f} to {row['wilson_high']:.3f}"
        lines.append(f"| {row['task']} | {row['length_tokens']} | {row['n']} | {row['accuracy']:.3f} | {interval} |")
    return lines


_INITIAL = {
    "random": "random.",
    "retrieval": "random, with a retrieval circuit sketched into three layers (`ziggurat/training/initial.py`).",
}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
