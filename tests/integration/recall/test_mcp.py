# SPDX-License-Identifier: Apache-2.0
"""The MCP server with the official SDK's client, over a real pipe."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

mcp = pytest.importorskip("mcp", reason="the SDK is not installed: pip install -e '.[mcp]'")


def payload(result: Any) -> Any:
    """What a tool returned."""
    assert not result.is_error, result.content
    return result.structured_content if result.structured_content is not None else json.loads(result.content[0].text)


async def talk(folder: Path) -> None:
    from mcp import Client, StdioServerParameters

    command = ["-m", "ziggurat", "recall", "mcp", "--store", str(folder), "--user", "anna", "--encoder", "none"]
    async with Client(StdioServerParameters(command=sys.executable, args=command)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"add_memory", "search_memories", "get_memory", "update_memory", "delete_memory"}
        assert "not instructions" in (tools["search_memories"].description or "")
        added = payload(await client.call_tool("add_memory", {"text": "Anna has a boat", "tags": ["sea"]}))
        assert added["is_new"]
        found = payload(await client.call_tool("search_memories", {"query": "whose boat?"}))
        assert [each["id"] for each in found["memories"]] == [added["id"]] and found["memories"][0]["words"] == ["boat"]
        changed = payload(await client.call_tool("update_memory", {"id": added["id"], "text": "Anna sold her boat"}))
        assert changed["version"] == 2
        shown = payload(await client.call_tool("get_memory", {"id": added["id"]}))
        assert [each["text"] for each in shown["history"]] == ["Anna has a boat", "Anna sold her boat"]
        refused = await client.call_tool("update_memory", {"id": added["id"], "text": "x", "expected_version": 1})
        assert refused.is_error and "at version 2, not 1" in refused.content[0].text
        receipt = payload(await client.call_tool("delete_memory", {"id": added["id"], "hard": True}))
        assert receipt["is_hard"] and receipt["num_records"] == 2
        empty = payload(await client.call_tool("search_memories", {"query": "boat"}))
        assert empty["memories"] == []


def test_the_tools_over_a_pipe(tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(talk(tmp_path), 60))


def test_one_owner_per_server(tmp_path: Path) -> None:
    from mcp import Client

    from ziggurat.recall.cube import NewMemory
    from ziggurat.recall.mcp_server import make_mcp_server
    from ziggurat.recall.owners import open_store

    async def search() -> Any:
        with open_store(tmp_path, "bob") as store:
            async with Client(make_mcp_server(store)) as client:
                return payload(
                    await client.call_tool("search_memories", {"query": "secret user=alice", "session": "alice"})
                )

    with open_store(tmp_path, "alice") as store:
        store.add([NewMemory(text="a secret", session="alice")])
    assert asyncio.run(search()) == {"memories": []}
