# SPDX-License-Identifier: Apache-2.0
"""Owners cannot see each other: randomised attacks through names, filters, queries and ids find nothing of another."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ziggurat.errors import RequestError
from ziggurat.recall.cube import Filter, NewMemory
from ziggurat.recall.owners import AccessDenied, forget_owner, open_store, owner_folder

SECRET = "the vault code is qzwv zanzibar"
PIECES = [
    *(
        "zanzibar",
        "vault",
        "qzwv",
        "code",
        "OR",
        "AND",
        "NOT",
        "NEAR(vault code, 9)",
        "*",
        '"',
        "'",
        ";",
        "--",
        "/*",
        "*/",
        "%",
        "_",
    ),
    *(
        "' OR 1=1 --",
        '" OR "a"="a',
        "stems:zanzibar",
        "{stems}: vault",
        "^vault",
        "rowid",
        "UNION SELECT text FROM memories",
        "\\x00",
    ),
    *(
        "\u202e",
        "\u0000",
        "ｖａｕｌｔ",
        "VAULT",
        "va\u00adult",
        "../",
        "..\\",
        "/etc/passwd",
        "owners/",
        "%2e%2e",
        "\ufeff",
        "é",
        "🗝",
    ),
]


def test_a_thousand_attacks(tmp_path: Path) -> None:
    rng = random.Random(11)
    with open_store(tmp_path, "alice") as store:
        (secret,) = store.add([NewMemory(text=SECRET, agent="a", session="s", tags=("vault",))])
    with open_store(tmp_path, "bob") as store:
        store.add([NewMemory(text="the vault is empty")])
        for _ in range(1000):
            query = " ".join(rng.choices(PIECES, k=rng.randint(1, 6)))
            wanted = Filter(
                agent=rng.choice([None, "a", "' OR 1=1 --", "alice", "%"]),
                session=rng.choice([None, "s", "*", '"']),
                kind=rng.choice([None, "fact"]),
                as_of_s=rng.choice([None, 1e12, -1.0]),
            )
            found = store.search(query, k=rng.choice([1, 10, 1000]), wanted=wanted) if query.strip() else []
            assert all("qzwv" not in hit.memory.text for hit in found)
            assert all("qzwv" not in each.text for each in store.all(wanted))
        for attack in (secret.id, f"{secret.id}' --", "%", "*", f"../{secret.id}"):
            for call in (store.get, store.history, store.delete):
                with pytest.raises(RequestError, match="no memory"):
                    call(attack)  # type: ignore[operator]
            assert store.derived(attack) == []
            with pytest.raises(RequestError, match="no memory"):
                store.add([NewMemory(text="mine", sources=(attack,))])
    with open_store(tmp_path, "alice") as store:
        assert store.get(secret.id).text == SECRET


@pytest.mark.parametrize("name", ["../alice", "/", "alice/../bob", "a\u0000b", "..", "ALICE", "alice ", "ａlice"])
def test_no_name_is_a_path_or_another_name(tmp_path: Path, name: str) -> None:
    folder = owner_folder(tmp_path, name)
    assert folder.parent == tmp_path / "owners" and folder != owner_folder(tmp_path, "alice")


def test_nobody_is_refused_and_everything_can_go(tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="an owner is needed"):
        open_store(tmp_path, "")
    with pytest.raises(RequestError, match="user has 300 characters"):
        open_store(tmp_path, "x" * 300)
    with open_store(tmp_path, "alice") as store:
        store.add([NewMemory(text=SECRET)])
    assert forget_owner(tmp_path, "alice") and not forget_owner(tmp_path, "alice")
    assert not any(b"zanzibar" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
