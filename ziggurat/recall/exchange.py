# SPDX-License-Identifier: Apache-2.0
"""Memories in and out of files: our own JSON lines, chats as OpenAI exports or sends them, LoCoMo's conversations, Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from ziggurat.errors import ConfigError
from ziggurat.recall.cube import MAX_TEXT_BYTES, MemCube, NewMemory
from ziggurat.recall.locomo import read_locomo

Form = Literal["jsonl", "openai", "locomo", "markdown"]
FORMS: tuple[Form, ...] = get_args(Form)


def read_memories(path: Path, form: Form) -> Iterator[NewMemory]:
    """What a file would have remembered. Texts over the limit of a memory are cut into several.

    Raises:
        ConfigError: the file cannot be read, or is not of that form; names the line or place.
    """
    if form == "locomo":
        yield from _from_locomo(path)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: byte {error.start}") from None
    readers = {"jsonl": _from_jsonl, "openai": _from_openai, "markdown": _from_markdown}
    yield from readers[form](path, text)


def write_memory(memory: MemCube) -> str:
    """One line of our own form."""
    fields = memory.as_dict()
    kept = (
        "text",
        "kind",
        "agent",
        "session",
        "speaker",
        "said_s",
        "valid_from_s",
        "valid_until_s",
        "expires_s",
        "confidence",
        "tags",
    )
    return json.dumps({"id": memory.id, **{name: fields[name] for name in kept}}, ensure_ascii=False)


def _from_jsonl(path: Path, text: str) -> Iterator[NewMemory]:
    known = set(NewMemory.__dataclass_fields__) - {"sources"}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or not isinstance(found.get("text"), str):
                raise ValueError("an object with a text is needed")
            fields = {name: value for name, value in found.items() if name in known and value is not None}
            if "tags" in fields:
                fields["tags"] = tuple(map(str, fields["tags"]))
            memory = NewMemory(**fields)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        yield memory


def _from_openai(path: Path, text: str) -> Iterator[NewMemory]:
    """A list of messages, an object with ``messages``, a list of such objects, or ChatGPT's export (``mapping`` of nodes)."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    is_messages = isinstance(found, list) and all(isinstance(each, dict) and "role" in each for each in found)
    conversations = [found] if is_messages or isinstance(found, dict) else found
    if not isinstance(conversations, list):
        raise ConfigError(f"{path} has no conversation: a list of messages, or of objects with messages, is needed")
    for number, each in enumerate(conversations):
        session, messages = f"{path.stem}-{number}", each
        if isinstance(each, dict):
            session = str(each.get("id") or each.get("conversation_id") or each.get("title") or session)[:200]
            messages = each.get("messages") or _exported(each)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ConfigError(f"{path}, conversation {number}: no messages")
        for message in messages:
            for piece in _pieces(_content(message)):
                yield NewMemory(
                    text=piece,
                    kind="message",
                    session=session,
                    speaker=str(message.get("role", ""))[:200],
                    said_s=_time(message),
                )


def _exported(conversation: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of ChatGPT's export, in order of time."""
    nodes = [each.get("message") for each in (conversation.get("mapping") or {}).values() if each.get("message")]
    found = [{"role": (node.get("author") or {}).get("role", ""), **node} for node in nodes]
    return sorted(found, key=lambda node: node.get("create_time") or 0)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, dict):
        content = content.get("parts")
    if isinstance(content, list):
        parts = [
            part if isinstance(part, str) else part.get("text", "") for part in content if isinstance(part, str | dict)
        ]
        content = "\n".join(filter(None, parts))
    return content if isinstance(content, str) else ""


def _time(message: dict[str, Any]) -> float | None:
    value = message.get("create_time", message.get("created_at", message.get("created")))
    return float(value) if isinstance(value, int | float) else None


def _from_locomo(path: Path) -> Iterator[NewMemory]:
    for conversation in read_locomo(path):
        for turn in conversation.turns:
            for piece in _pieces(f"{turn.date} {turn.text}".strip()):
                yield NewMemory(
                    text=piece,
                    kind="message",
                    session=f"{conversation.id}/{turn.session}",
                    speaker=turn.speaker,
                    tags=(turn.id,),
                )


def _from_markdown(path: Path, text: str) -> Iterator[NewMemory]:
    """A memory per paragraph or item of a list; the headings above it go with it as its session."""
    heading: list[str] = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        lines = []
        for line in block.split("\n"):
            if line.startswith("#"):
                level = len(line) - len(line.lstrip("#"))
                heading = [*heading[: level - 1], line.strip("# ").strip()]
            elif line.lstrip().startswith(("- ", "* ")):
                lines.append(line.strip()[2:].strip())
            elif line.strip():
                lines[-1:] = [f"{lines[-1]} {line.strip()}"] if lines else [line.strip()]
        for each in lines:
            for piece in _pieces(each):
                yield NewMemory(text=piece, kind="note", session=" / ".join([path.stem, *filter(None, heading)])[:200])


def _pieces(text: str) -> Iterator[str]:
    """The text, cut at spaces where it is too long for one memory."""
    rest = text.strip()
    limit = MAX_TEXT_BYTES // 4  # a character has at most four bytes
    while len(rest) > limit:
        cut = rest.rfind(" ", 0, limit)
        cut = cut if cut > 0 else limit
        yield rest[:cut].rstrip()
        rest = rest[cut:].lstrip()
    if rest:
        yield rest


def date_text(seconds: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
