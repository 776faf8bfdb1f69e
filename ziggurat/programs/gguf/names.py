# SPDX-License-Identifier: Apache-2.0
"""Tensor names of GGUF and of Hugging Face, and the order of rows.

Source: llama.cpp's ``gguf-py/gguf/tensor_mapping.py`` and ``convert_hf_to_gguf.py``. Its ``llama`` architecture rotates neighbouring
values of a head, Hugging Face's rotates halves; so rows of q and k of that architecture lie in pairs::

    Hugging Face   0 1 2 .. | d/2 d/2+1 ..        (per head of d rows)
    GGUF, llama    0 d/2 1 d/2+1 2 d/2+2 ..
"""

from __future__ import annotations

import re

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_LAYER = re.compile(r"^blk\.(\d+)\.(\w+)\.(weight|bias)$")
_HF_LAYER = re.compile(r"^model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)$")
_PAIRED = re.compile(r"^model\.layers\.\d+\.self_attn\.(q|k)_proj\.(weight|bias)$")
ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, for scaling that depends on the frequency (llama3); belongs to the configuration."""


def hf_name(name: str) -> str | None:
    """Hugging Face's name of a GGUF tensor; None if it has none."""
    found = _GGUF_LAYER.match(name)
    if found is None:
        return _WHOLE.get(name)
    layer, part, kind = found.groups()
    return None if part not in _IN_LAYER else f"model.layers.{layer}.{_IN_LAYER[part]}.{kind}"


def gguf_name(name: str) -> str | None:
    """GGUF's name of a tensor with that Hugging Face name; None if it has none."""
    found = _HF_LAYER.match(name)
    if found is None:
        return next((ours for ours, theirs in _WHOLE.items() if theirs == name), None)
    layer, part, kind = found.groups()
    ours = next((ours for ours, theirs in _IN_LAYER.items() if theirs == part), None)
    return None if ours is None else f"blk.{layer}.{ours}.{kind}"


def paired_heads(architecture: str, name: str, num_heads: int, num_kv_heads: int) -> int:
    """Heads whose rows lie in pairs in GGUF, for a tensor by its Hugging Face name; 0: in Hugging Face's order.

    Args:
        architecture: GGUF's name (``llama``).
    """
    found = _PAIRED.match(name)
    if architecture != "llama" or found is None:
        return 0
    return num_heads if found[1] == "q" else num_kv_heads


def paired_row(row: int, head_rows: int) -> int:
    """Where row ``row`` (Hugging Face's order) lies when the rows of each head lie in pairs.

    Args:
        head_rows: rows per head, even.
    """
    head, place = divmod(row, head_rows)
    half, index = divmod(place, head_rows // 2)
    return head * head_rows + 2 * index + half
