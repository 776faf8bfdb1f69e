# SPDX-License-Identifier: Apache-2.0
"""Exports the newest checkpoint of a run as it stands, finished or not.

`python -m ziggurat.training.release --recipe embedded --run runs/embedded --to ziggurat/assets/embedded [--results FILE.json]`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ziggurat.programs.architectures import build_program
from ziggurat.training import checkpoint
from ziggurat.training.config import TrainingConfig, load_recipe
from ziggurat.training.evaluate import held_out_loss
from ziggurat.training.export import RunSummary, export_model
from ziggurat.training.interpreter import ProgramModel
from ziggurat.training.run import load_or_make_tokenizer


def release(config: TrainingConfig, run: Path, to: Path, results: Path | None = None, note: str = "") -> None:
    """Exports `run`'s checkpoint to the folder `to`; the model card quotes the rows of a results file if one is given.

    Raises:
        ModelError: the run has no whole checkpoint.
    """
    weights, _, position = checkpoint.load(run / checkpoint.FILE_NAME)
    model = ProgramModel(build_program(dict(config.model), "train"))
    model.load_weights(weights)
    tokenizer = load_or_make_tokenizer(config, run)
    rows = tuple(json.loads(results.read_text(encoding="utf-8"))["rows"]) if results is not None else ()
    held_out = held_out_loss(model, tokenizer, config.texts)
    summary = RunSummary(recipe=config.name, position=position, held_out=held_out, accuracies=rows, note=note)
    export_model(model, config, tokenizer, to, summary)


def main() -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m ziggurat.training.release", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--run", required=True, type=Path, help="folder with checkpoint.pt")
    parser.add_argument("--to", required=True, type=Path, help="model folder to write")
    parser.add_argument("--results", type=Path, default=None, help="results file whose rows go into the model card")
    parser.add_argument("--note", default="", help="a paragraph on the run for the model card")
    arguments = parser.parse_args()
    release(load_recipe(arguments.recipe), arguments.run, arguments.to, arguments.results, arguments.note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
