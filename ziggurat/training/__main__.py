# SPDX-License-Identifier: Apache-2.0
"""`python -m ziggurat.training --recipe embedded --out runs/embedded [--resume]`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Runs a recipe; exit code 0 also after a stop by signal."""
    parser = argparse.ArgumentParser(prog="python -m ziggurat.training", description="Train a model by a recipe.")
    parser.add_argument("--recipe", required=True, help="name of a recipe in the package, or a TOML file")
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoint, log and model")
    parser.add_argument(
        "--text", action="append", default=[], help="a UTF-8 text file for the source 'text' (repeatable)"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    parser.add_argument("--max-steps", type=int, default=None, help="stop after that many steps")
    arguments = parser.parse_args()
    from ziggurat.errors import UserError
    from ziggurat.training.config import load_recipe
    from ziggurat.training.run import run_training

    try:
        config = load_recipe(arguments.recipe)
        config = dataclasses.replace(config, texts=(*config.texts, *arguments.text))
        result = run_training(config, arguments.out, resume=arguments.resume, max_steps=arguments.max_steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = f"exported to {result.model_folder}" if result.is_finished else "stopped; go on with --resume"
    print(f"{result.tokens:,} tokens in {result.step:,} steps; {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
