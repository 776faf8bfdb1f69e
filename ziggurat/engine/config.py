# SPDX-License-Identifier: Apache-2.0
"""What the user asks of an engine: one frozen dataclass. Command-line flags are generated from it; torch-free.

Checking happens in `EngineConfig.__post_init__`; deriving (formats, limits, number of blocks) is `ziggurat.memory.fit`'s job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError, UnsupportedFeature
from ziggurat.registry import nearest
from ziggurat.scheduling.fairness import named_weights
from ziggurat.units import parse_size

EMBEDDED_MODEL = "embedded"


def option(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] | None = None,
    group: str = "engine",
    is_secret: bool = False,
) -> Any:
    """A dataclass field that is also a command-line flag (``max_model_len`` -> ``--max-model-len``). A secret is never shown."""
    metadata = {"help": help_text, "choices": choices, "group": group, "is_secret": is_secret}
    return field(default=default, metadata=metadata, repr=not is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine, by vLLM's names where vLLM has one.

    ``memory`` is what the process may add over its baseline (tier 0): a size such as ``1GiB`` or a number of bytes; None takes
    min(cgroup limit, RAM) - baseline - max(256 MiB, 5 %).

    Raises:
        ConfigError: a value is out of range; the message has the number and the bound.
        UnsupportedFeature: a known setting that is not built (``device="cuda"``).
    """

    model: str = option(
        EMBEDDED_MODEL, "model folder, org/name in the Hugging Face cache, GGUF file, or 'embedded'", group="model"
    )
    served_model_name: str | None = option(None, "name that requests use (default: the model argument)", group="model")
    lora_modules: tuple[str, ...] = option(
        (), "NAME=FOLDER: serve this LoRA adapter under that model name; repeat it", group="model"
    )
    dtype: str = option(
        "auto",
        "storage type of weights that are not quantized; auto keeps the checkpoint's",
        group="model",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = option(
        "auto",
        "weights in 8 or 4 bits per value, in groups of 32; auto keeps a GGUF file's if all matrices have one of the two",
        group="model",
        choices=("auto", "none", "q8_0", "q4_0"),
    )
    load_format: str = option(
        "auto", "auto reads safetensors; dummy makes random weights", group="model", choices=("auto", "dummy")
    )
    device: str = option("cpu", "where to run", choices=("cpu", "cuda"), group="model")
    trust_remote_code: bool = option(False, "refused: Ziggurat never runs code from a checkpoint", group="model")
    memory: str | int | None = option(None, "bytes the process may add over its baseline, e.g. 1GiB", group="memory")
    max_model_len: str | int | None = option(
        None, "tokens per sequence; 'auto' takes the most that fits", group="memory"
    )
    block_size: int = option(16, "tokens per KV block", group="memory")
    kv_cache_dtype: str = option(
        "auto",
        "storage type of the KV cache; q8_0, q4_0, kivi4 and kivi2 take 8.5, 4.5, 5 and 3 bits per value; auto follows the weights",
        group="memory",
        choices=("auto", "fp32", "bf16", "fp16", "q8_0", "q4_0", "kivi4", "kivi2"),
    )
    offload_folder: Path | None = option(
        None, "where layers that do not fit in --memory lie, packed; they are read anew in every step", group="memory"
    )
    enable_prefix_caching: bool = option(True, "share the KV of common beginnings", group="memory")
    eviction_policy: str = option("lru", "which cached beginning leaves when space is wanted", group="memory")
    swap_space: str | int = option(
        0,
        "RAM beside --memory for the KV of preempted sequences and idle prefixes, e.g. 1GiB; 0 computes it again",
        group="memory",
    )
    preemption_mode: str = option(
        "auto",
        "what a sequence does that loses its blocks: copy them to the swap space, compute them again, or what is cheaper",
        choices=("auto", "swap", "recompute"),
        group="memory",
    )
    max_num_seqs: int | None = option(None, "sequences per step (default 32, or what fits)", group="scheduling")
    max_num_batched_tokens: str | int | None = option(
        None, "tokens per step (default 256, or what fits); 'auto' times steps at start", group="scheduling"
    )
    tbt_target_ms: float | None = option(
        None, "longest time between tokens that 'auto' may plan for, ms", group="scheduling"
    )
    max_queued_requests: int = option(256, "requests that may wait; one more gets 429", group="scheduling")
    planner: str = option("sarathi", "batch planner: who shares a step", group="scheduling")
    scheduling_policy: str = option(
        "fcfs",
        "order of the queue; priority: lower first; deadline: earliest first; vtc: the client with the least service first",
        group="scheduling",
    )
    client_weight: tuple[str, ...] = option(
        (), "NAME=WEIGHT: a client's share under vtc beside clients of weight 1; repeat it", group="scheduling"
    )
    kernels: str = option(
        "auto",
        "compute kernels; auto takes native ones if they were built",
        group="compute",
        choices=("auto", "native", "torch"),
    )
    threads: int | None = option(None, "compute threads (default: the cores this process may use)", group="compute")
    seed: int = option(0, "base of the seeds of requests that bring none, and of dummy weights", group="compute")

    def __post_init__(self) -> None:
        if self.device == "cuda":
            raise UnsupportedFeature(
                "device 'cuda' is not built yet; Ziggurat runs on 'cpu' for now", feature="device:cuda"
            )
        if self.trust_remote_code:
            raise UnsupportedFeature(
                "trust_remote_code is refused: Ziggurat never runs code from a checkpoint", feature="trust_remote_code"
            )
        if self.memory is not None:
            parse_size(self.memory)
        num_swap_bytes, weights, _ = self.swap_bytes, self.client_weights, self.adapters
        if weights and self.scheduling_policy != "vtc":
            raise ConfigError("client_weight needs scheduling_policy 'vtc': no other order looks at it")
        if self.preemption_mode == "swap" and not num_swap_bytes:
            raise ConfigError("preemption_mode 'swap' needs room: give --swap-space, e.g. 1GiB")
        self._check_choices()
        self._check_calibration()
        for name in ("block_size", "max_num_seqs", "max_queued_requests", "threads"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
        self._check_max_model_len()
        seqs, tokens = self.max_num_seqs, self.fixed_num_batched_tokens
        if seqs is not None and tokens is not None and tokens < seqs + 1:
            raise ConfigError(
                f"max_num_batched_tokens {tokens} is below max_num_seqs + 1 = {seqs + 1}: decodes alone would fill every step and "
                f"no prompt could start; raise it to {seqs + 1} or lower max_num_seqs to {max(tokens - 1, 1)}"
            )

    @property
    def adapters(self) -> dict[str, Path]:
        """Folders of LoRA adapters by name.

        Raises:
            ConfigError: an entry is not NAME=FOLDER, or a name stands twice.
        """
        found: dict[str, Path] = {}
        for entry in self.lora_modules:
            name, is_pair, folder = entry.partition("=")
            if not (name and is_pair and folder) or name in found:
                raise ConfigError(f"lora_modules {entry!r} must look like name=path/to/folder, with a name of its own")
            found[name] = Path(folder).expanduser()
        return found

    @property
    def client_weights(self) -> dict[str, float]:
        """Weights by client.

        Raises:
            ConfigError: an entry is not NAME=WEIGHT with a weight above 0.
        """
        return named_weights(self.client_weight)

    @property
    def swap_bytes(self) -> int:
        """The swap space; 0 is none.

        Raises:
            ConfigError: it is no size.
        """
        return 0 if self.swap_space in (0, "0") else parse_size(self.swap_space)

    @property
    def fixed_num_batched_tokens(self) -> int | None:
        """Tokens per step as asked for; None if they are to be derived or measured."""
        value = self.max_num_batched_tokens
        return None if value is None or value == "auto" else int(value)

    @property
    def is_calibrated(self) -> bool:
        """The token budget is measured at start."""
        return self.max_num_batched_tokens == "auto" or self.tbt_target_ms is not None

    def _check_calibration(self) -> None:
        tokens, target_ms = self.max_num_batched_tokens, self.tbt_target_ms
        try:
            number = self.fixed_num_batched_tokens
        except ValueError:
            number = 0
        if isinstance(tokens, (bool, float)) or (number is not None and number < 1):
            raise ConfigError(f"max_num_batched_tokens must be 'auto' or an integer of at least 1, got {tokens!r}")
        if target_ms is not None and not 0 < target_ms < float("inf"):
            raise ConfigError(f"tbt_target_ms must be above 0, got {target_ms!r}: no step keeps it")
        if target_ms is not None and number is not None:
            raise ConfigError(
                f"max_num_batched_tokens {number} and tbt_target_ms {target_ms:g} contradict each other: give one of them"
            )

    def _check_choices(self) -> None:
        for name, spec in self.__dataclass_fields__.items():
            choices = spec.metadata.get("choices")
            value = getattr(self, name)
            if choices and value not in choices:
                hint = nearest(str(value), list(choices))
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")

    def _check_max_model_len(self) -> None:
        value = self.max_model_len
        if value is None or value == "auto":
            return
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            raise ConfigError(f"max_model_len must be 'auto' or an integer of at least 1, got {value!r}")
