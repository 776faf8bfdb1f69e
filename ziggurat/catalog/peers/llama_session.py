# SPDX-License-Identifier: Apache-2.0
"""llama.cpp below its Python API: batches of several sequences over one KV cache, and their logits.

Through the ctypes functions of llama-cpp-python, because its `Llama` class holds one sequence only.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import EngineError

_LOG_LEVEL_ERROR = 4
_GGML_F32, _GGML_F16 = 0, 1
_KV_TYPES = {"f32": _GGML_F32, "f16": _GGML_F16}
_BATCH_TOKENS = 2048
# llama.cpp holds the callback for the rest of the process, so it must not be collected.
_KEPT: list[Any] = []


@dataclass(frozen=True, slots=True)
class Feed:
    """One token of one sequence."""

    token: int
    position: int
    sequence: int
    wants_logits: bool = False


@functools.cache
def library() -> Any:
    """llama.cpp's functions; it writes errors to standard error and nothing else."""
    lib = import_module("llama_cpp")
    _KEPT.append(lib.llama_log_callback(_log_errors))
    lib.llama_log_set(_KEPT[-1], ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib


class LlamaSession:
    """A model and a context. Close it, or use it as a context manager.

    Args:
        path: a GGUF file.
        num_tokens: KV of all sequences together, tokens.
        kv: ``f16``, llama.cpp's default, or ``f32``.
        has_flash_attention: None lets llama.cpp decide.
        is_repacked: quantized weights may be packed anew for this machine's instructions. Without, the plain kernels compute, which
            also run on virtual machines that show AMX and fault on it.

    Raises:
        EngineError: llama.cpp cannot load the file or make the context; what it says is on standard error.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        num_tokens: int,
        num_sequences: int,
        kv: str = "f16",
        has_flash_attention: bool | None = None,
        is_repacked: bool = True,
    ) -> None:
        self._lib = library()
        model_params = self._lib.llama_model_default_params()
        model_params.use_extra_bufts = is_repacked
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise EngineError(f"llama.cpp cannot load {path}")
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = num_tokens, num_sequences, True
        params.n_batch = _BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = _KV_TYPES[kv]
        if has_flash_attention is not None:
            params.flash_attn_type = int(has_flash_attention)
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            self._lib.llama_model_free(self._model)
            raise EngineError(f"llama.cpp cannot make a context of {num_tokens} tokens for {path}")
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = self._lib.llama_batch_init(_BATCH_TOKENS, 0, 1)
        # llama.cpp rounds a context up, and makes a batch no larger than that.
        self._batch_tokens = int(self._lib.llama_n_batch(self._context))
        self.num_tokens = int(self._lib.llama_n_ctx(self._context))
        self.vocab_size = int(self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model)))

    def __enter__(self) -> LlamaSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if self._context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = None

    def clear(self) -> None:
        """Forget all sequences."""
        self._lib.llama_memory_clear(self._memory, True)

    def fork(self, source: int, target: int) -> None:
        """Sequence ``target`` gets the tokens that ``source`` has; their KV is shared."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def feed(self, tokens: Sequence[Feed]) -> NDArray[np.float32]:
        """Compute tokens, in their order.

        Returns:
            [tokens that want logits, vocabulary].

        Raises:
            EngineError: llama.cpp refuses, for example because its KV is full.
        """
        step = self._batch_tokens
        return np.concatenate([self._decode(tokens[start : start + step]) for start in range(0, len(tokens), step)])

    def _decode(self, tokens: Sequence[Feed]) -> NDArray[np.float32]:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, each in enumerate(tokens):
            batch.token[index], batch.pos[index] = each.token, each.position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, each.sequence
            batch.logits[index] = each.wants_logits
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise EngineError(f"llama_decode of {len(tokens)} tokens failed with code {code}")
        wanted = [index for index, each in enumerate(tokens) if each.wants_logits]
        result = np.empty((len(wanted), self.vocab_size), np.float32)
        for row, index in enumerate(wanted):
            result[row] = np.ctypeslib.as_array(
                self._lib.llama_get_logits_ith(self._context, index), shape=(self.vocab_size,)
            )
        return result


def greedy(session: LlamaSession, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    """Continue all prompts together, ``num_tokens`` each; what they begin with alike is computed once."""
    session.clear()
    shared = _shared_tokens(prompts)
    if shared:
        session.feed([Feed(token, position, 0) for position, token in enumerate(prompts[0][:shared])])
        for sequence in range(1, len(prompts)):
            session.fork(0, sequence)
    logits = session.feed(
        [
            Feed(prompt[position], position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position in range(shared, len(prompt))
        ]
    )
    outputs: list[list[int]] = [[] for _ in prompts]
    while True:
        last = logits.argmax(axis=1).tolist()
        for output, token in zip(outputs, last, strict=True):
            output.append(token)
        if len(outputs[0]) == num_tokens:
            return outputs
        logits = session.feed(
            [
                Feed(token, len(prompt) + len(output) - 1, sequence, True)
                for sequence, (prompt, output, token) in enumerate(zip(prompts, outputs, last, strict=True))
            ]
        )


def _shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; each keeps one to compute. 0 for one prompt."""
    if len(prompts) < 2:
        return 0
    count = 0
    for column in zip(*prompts, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return min(count, min(len(prompt) for prompt in prompts) - 1)


def _log_errors(level: int, text: bytes, _user_data: object) -> None:
    if level == _LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode("utf-8", errors="replace"))
