# SPDX-License-Identifier: Apache-2.0
"""Words, BM25, signals, fusion and the figures of a benchmark run."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.catalog.data import data_file, why_missing
from ziggurat.cli.bench.recall import run as bench_recall
from ziggurat.errors import ConfigError
from ziggurat.recall.bm25 import BM25, ranked
from ziggurat.recall.evaluation import auroc, evaluate, figures
from ziggurat.recall.fusion import WEIGHTS, answer_probability, explain, fused
from ziggurat.recall.locomo import read_locomo
from ziggurat.recall.signals import Passage, Signals
from ziggurat.recall.text import stem, words

LOCOMO = "locomo/locomo_4.json"
WORD = st.sampled_from(["red", "green", "blue", "house", "garden", "river", "walking", "walked", "walks", "Anna"])
TEXTS = st.lists(st.lists(WORD, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("running", "run"),
        ("studies", "study"),
        ("studied", "study"),
        ("glass", "glass"),
        ("anna's", "anna"),
        ("red", "red"),
    ],
)
def test_stems(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_stop_words_leave() -> None:
    assert words("When did Anna's friends go to the river?") == ["anna", "friend", "go", "river"]


def by_formula(texts: list[str], query: str, k1: float, b: float) -> dict[int, float]:
    """Okapi BM25 written down again, without postings."""
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents) or 1.0
    found = {}
    for index, document in enumerate(documents):
        score = 0.0
        for word in words(query):
            holding = sum(word in other for other in documents)
            count = Counter(document)[word]
            if count:
                rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                score += rarity * count * (k1 + 1) / (count + k1 * (1 - b + b * len(document) / mean))
        if score:
            found[index] = score
    return found


@given(TEXTS, st.lists(WORD, min_size=1, max_size=4).map(" ".join))
def test_bm25_is_its_formula(texts: list[str], query: str) -> None:
    index: BM25[int] = BM25()
    for key, text in enumerate(texts):
        index.add(key, text)
    assert index.scores(query) == pytest.approx(by_formula(texts, query, index.k1, index.b))


@given(TEXTS, st.data())
def test_a_removed_document_leaves_no_trace(texts: list[str], data: st.DataObject) -> None:
    index: BM25[int] = BM25()
    for key, text in enumerate([*texts, "purple walking elephant"]):
        index.add(key, text)
    index.remove(len(texts))
    fresh: BM25[int] = BM25()
    for key, text in enumerate(texts):
        fresh.add(key, text)
    query = data.draw(WORD)
    assert index.scores(query) == pytest.approx(fresh.scores(query))
    assert index.scores("elephant") == {} and len(index) == len(texts)


def test_explanations_add_up() -> None:
    index: BM25[str] = BM25()
    index.add("a", "a red house by the river")
    index.add("b", "a green garden")
    parts = index.explain("red river", "a")
    assert sum(parts.values()) == pytest.approx(index.scores("red river")["a"]) and set(parts) == {"red", "river"}
    assert ranked(index.scores("red garden"), ["b", "a"])[0] in ("a", "b")


TALK = [
    Passage(id="1", session="1", speaker="Anna", date="8 May 2023", text="What did you plant in the garden?"),
    Passage(id="2", session="1", speaker="Ben", date="8 May 2023", text="Tomatoes and a small lemon tree."),
    Passage(id="3", session="2", speaker="Anna", date="2 June 2023", text="My sister moved to Oslo."),
    Passage(id="4", session="2", speaker="Ben", date="2 June 2023", text="I bought a boat yesterday."),
]


def test_the_turn_before_helps_to_find_an_answer() -> None:
    signals = Signals(TALK)
    question = "What did Ben plant in his garden?"
    rows = signals.of(question)
    scores = fused(signals, rows)
    assert int(np.argmax(scores)) == 1
    assert rows.shape == (len(signals.names), 4) and set(signals.names) <= set(WEIGHTS)
    assert sum(explain(signals, rows, 1).values()) == pytest.approx(scores[1])


def test_an_answer_of_somebody_else_is_less_likely() -> None:
    signals = Signals(TALK)
    right, wrong = "What did Ben buy? A boat?", "What did Anna buy? A boat?"
    sure = [answer_probability(signals, signals.of(text), text) for text in (right, wrong)]
    assert 0 < sure[1] < sure[0] < 1


def test_nobody_named_says_nothing_about_speakers() -> None:
    assert not Signals(TALK).is_of_the_named("Where is Oslo?").any()
    assert not Signals(TALK).is_of_the_named("Did Anna meet Ben?").any()
    assert list(Signals(TALK).is_of_the_named("Did anna swim?")) == [True, False, True, False]


def test_figures_of_a_ranking_by_hand() -> None:
    found = figures([*"abcdefghijkl"], frozenset("bk"))
    assert (found["recall@5"], found["recall@10"], found["full@10"], found["mrr"]) == (0.5, 0.5, 0.0, 0.5)
    assert found["ndcg@10"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=12))
def test_auroc_is_the_chance_that_a_positive_is_above(pairs: list[tuple[bool, int]]) -> None:
    positive = [score for is_positive, score in pairs if is_positive]
    negative = [score for is_positive, score in pairs if not is_positive]
    found = auroc([(is_positive, float(score)) for is_positive, score in pairs])
    if not positive or not negative:
        assert found is None
        return
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    assert found == pytest.approx(wins / (len(positive) * len(negative)))


def write_locomo(path: Path) -> Path:
    """A conversation in LoCoMo's form, with its known defects."""
    turn = {"1": ("Anna", "Did you plant tomatoes?"), "2": ("Ben", "Yes, in May."), "3": ("Anna", "I went to Oslo.")}
    sample = {
        "sample_id": "conv-1",
        "conversation": {
            "speaker_a": "Anna",
            "speaker_b": "Ben",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_2_date_time": "a date without a session",
            "session_1": [
                {
                    "speaker": who,
                    "dia_id": f"D1:{number}",
                    "text": text,
                    **({"blip_caption": "a tree"} if number == "2" else {}),
                }
                for number, (who, text) in turn.items()
            ],
        },
        "qa": [
            {"question": "When did Ben plant tomatoes?", "answer": "May", "evidence": ["D1:1; D:1:02"], "category": 2},
            {"question": "Where was Ben?", "adversarial_answer": "Oslo", "evidence": ["D1:3"], "category": 5},
            {"question": "Lost?", "answer": 3, "evidence": ["D9:9", "D"], "category": 1},
        ],
    }
    path.write_text(json.dumps([sample]))
    return path


def test_the_defects_of_the_file_are_mended(tmp_path: Path) -> None:
    (conversation,) = read_locomo(write_locomo(tmp_path / "l.json"))
    assert [question.evidence for question in conversation.questions] == [{"D1:1", "D1:2"}, {"D1:3"}]
    assert conversation.num_dropped == 1 and conversation.turns[1].text == "Yes, in May. [image: a tree]"


def test_the_keys_of_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_locomo(tmp_path / "l.json")
    assert bench_recall(["--locomo", str(path), "--encoder", "none", "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    contract = {"n", "dropped", "encoder", "bm25", "dense", "hybrid", "abstention_auroc", "latency_ms"}
    assert contract <= result.keys() and (result["n"], result["dropped"], result["encoder"]) == (2, 1, None)
    assert {"recall@5", "recall@10", "full@10", "mrr", "ndcg@10", "by_category"} <= result["bm25"].keys()
    assert set(result["hybrid"]["by_category"]) == {"2", "5"} and result["latency_ms"].keys() == {"p50", "p99"}


@pytest.mark.parametrize("text", ["{", "[]", '[{"qa": []}]', '[{"conversation": {}, "qa": [{}]}]'])
def test_another_file_is_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_locomo(path)


@pytest.mark.data
def test_the_published_baseline_comes_out() -> None:
    """BM25 over turns and windows on four conversations: recall@10 .728, MRR .537, multi-hop .407, each within .01."""
    path = data_file(LOCOMO)
    if path is None:
        pytest.skip(why_missing(LOCOMO))
    found = evaluate(read_locomo(path), None)["bm25"]
    assert found["recall@10"] == pytest.approx(0.728, abs=0.01) and found["mrr"] == pytest.approx(0.537, abs=0.01)
    assert found["by_category"]["1"]["recall@10"] == pytest.approx(0.407, abs=0.01)
