# SPDX-License-Identifier: Apache-2.0
"""Tiny traces in every format, written by hand for these tests."""

from __future__ import annotations

import json
from pathlib import Path

BURSTGPT = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,7,3.5,GPT-4,100,20,120,Conversation log
6,,1,ChatGPT,30,0,30,API log
6,,1.5,ChatGPT,40,8,48,API log
90,7,4,GPT-4,150,30,180,Conversation log
95,8,,ChatGPT,0,3,3,Conversation log
"""
BURSTGPT_OLD = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5.0,GPT-4,100,20,120,API log
"""
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
    "2023-11-16 18:16:46.6805900,10,0\r\n"
)
AZURE_2024 = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,3\n1.25,20,4\n"
MOONCAKE = """\
{"timestamp": 0, "input_length": 1000, "output_length": 50, "hash_ids": [1, 2]}

{"timestamp": 1500, "input_length": 1200, "output_length": 5, "hash_ids": [1, 2, 3]}
{"timestamp": 3000, "input_length": 512, "output_length": 7, "hash_ids": [9]}
"""
SHAREGPT = json.dumps(
    [
        {
            "id": "a",
            "conversations": [
                {"from": "human", "value": "What is a ziggurat?"},
                {"from": "gpt", "value": "A stepped tower."},
                {"from": "human", "value": "Where?"},
                {"from": "gpt", "value": "In Mesopotamia."},
            ],
        },
        {"id": "b", "conversations": [{"from": "gpt", "value": "An answer that nobody asked for."}]},
        {
            "id": "c",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "user", "value": "What is a ziggurat?"},
                {"from": "assistant", "value": "A tower."},
            ],
        },
    ],
    indent=1,
)

ALL = {
    "burstgpt": ("burstgpt", "trace.csv", BURSTGPT),
    "burstgpt-old": ("burstgpt", "trace.csv", BURSTGPT_OLD),
    "azure": ("azure", "trace.csv", AZURE),
    "azure-2024": ("azure", "trace.csv", AZURE_2024),
    "vidur": ("vidur", "trace.csv", VIDUR),
    "mooncake": ("mooncake", "trace.jsonl", MOONCAKE),
    "sharegpt": ("sharegpt", "trace.json", SHAREGPT),
    "sharegpt-lines": ("sharegpt", "trace.jsonl", "\n".join(json.dumps(row) for row in json.loads(SHAREGPT))),
}


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path
