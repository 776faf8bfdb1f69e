# SPDX-License-Identifier: Apache-2.0
"""Readers of all formats: what a row means, how a file is recognised, what is dropped and counted, and what is refused with its row."""

from __future__ import annotations

import csv
import gzip
import io
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.null.workload.traces import samples
from ziggurat.errors import ConfigError, SchemaError, TraceError
from ziggurat.workload.traces import rows
from ziggurat.workload.traces.formats import TRACE_FORMATS, FormatSettings
from ziggurat.workload.traces.reading import Filter, ReadOptions, TraceReader, detect, read_trace
from ziggurat.workload.traces.rows import BadRow, rows_of


@pytest.mark.parametrize("name", samples.ALL)
def test_the_format_is_known_from_the_file(tmp_path: Path, name: str) -> None:
    expected, file_name, text = samples.ALL[name]
    path = samples.write(tmp_path, text, file_name)
    assert detect(path) == detect(path, expected) == expected
    reader = TraceReader(path)
    assert len(list(reader)) == reader.counts.num_requests > 0
    assert reader.counts.rows_read == reader.counts.rows_kept + sum(reader.counts.dropped.values())


def test_every_format_has_a_sample() -> None:
    assert {expected for expected, _, _ in samples.ALL.values()} == set(TRACE_FORMATS.names())


def test_burstgpt(tmp_path: Path) -> None:
    reader = TraceReader(samples.write(tmp_path, samples.BURSTGPT))
    first, api, second = reader
    assert (first.t_s, first.prompt_len, first.max_new, first.elapsed_s) == (5.0, 100, 20, 3.5)
    assert (first.session, first.model, first.log_type) == ("7", "GPT-4", "Conversation log")
    assert (api.session, api.prompt_len, second.session) == (None, 40, "7")
    assert reader.counts.dropped == {"failed (no response tokens)": 1, "no prompt tokens": 1}
    assert list(reader.counts.failed_s) == [6.0]
    assert reader.counts.as_text() == (
        "5 rows read = 2 dropped (1 failed (no response tokens), 1 no prompt tokens) + 3 kept"
    )
    assert first.prompt(99) == second.prompt(99)[:100], "turns of a session share their beginning"


def test_times_of_day_in_milliseconds_since_1970_are_times(tmp_path: Path) -> None:
    path = samples.write(tmp_path, '{"timestamp": 1700000000123, "input_length": 3, "output_length": 1}', "a.jsonl")
    assert [arrival.t_s for arrival in read_trace(path)] == [pytest.approx(1700000000.123)]


def test_azure_counts_from_its_first_row_and_drops_no_output(tmp_path: Path) -> None:
    reader = TraceReader(samples.write(tmp_path, samples.AZURE))
    assert [arrival.t_s for arrival in reader] == pytest.approx([0.0, 4.314579])
    assert reader.counts.dropped == {"no output tokens": 1}


def test_dates_out_of_order_count_from_the_earliest(tmp_path: Path) -> None:
    lines = samples.AZURE.splitlines()
    path = samples.write(tmp_path, "\n".join([lines[0], lines[2], lines[1]]))
    found = list(TraceReader(path, ReadOptions(sort=True)))
    assert [(arrival.t_s, arrival.prompt_len) for arrival in found] == [(0.0, 374), (pytest.approx(4.314579), 396)]
    with pytest.raises(TraceError, match="not sorted: row 2"):
        list(TraceReader(path, ReadOptions(skip_bad=True)))


def test_mooncake_shares_what_its_hashes_share(tmp_path: Path) -> None:
    first, second, other = TraceReader(samples.write(tmp_path, samples.MOONCAKE))
    assert (second.t_s, second.hash_ids, second.hash_block_tokens) == (1.5, (1, 2, 3), 512)
    prompts = [arrival.prompt(1000) for arrival in (first, second, other)]
    assert [len(prompt) for prompt in prompts] == [1000, 1200, 512]
    assert prompts[0] == prompts[1][:1000] and prompts[2] != prompts[0][:512]


def test_sharegpt_keeps_history_and_merges_conversations_in_time(tmp_path: Path) -> None:
    reader = TraceReader(samples.write(tmp_path, samples.SHAREGPT, "trace.json"))
    found = list(reader)
    assert [(arrival.id, arrival.t_s) for arrival in found] == [("row-1.0", 0.0), ("row-3.0", 2.0), ("row-1.1", 60.0)]
    assert (reader.counts.rows_read, reader.counts.rows_kept, reader.counts.num_requests) == (3, 2, 3)
    assert reader.counts.dropped == {"no question with an answer": 1} and not reader.has_times
    assert "2 kept, which hold 3 requests" in reader.counts.as_text()
    # ceil(19 / 4) tokens of question, then ceil(16 / 4) of answer, then ceil(6 / 4) of the next question.
    assert [arrival.prompt_len for arrival in found] == [5, 3 + 5, 5 + 4 + 2]
    assert found[2].hash_ids[:5] == found[0].hash_ids and found[1].hash_ids[3:] == found[0].hash_ids


def test_sharegpt_with_a_tokenizer_has_token_ids(tmp_path: Path) -> None:
    settings = FormatSettings(encode=lambda text: [len(word) for word in text.split()])
    path = samples.write(tmp_path, samples.SHAREGPT, "trace.json")
    first = next(iter(TraceReader(path, ReadOptions(settings=settings))))
    assert (first.prompt_ids, first.max_new) == ((4, 2, 1, 9), 3)


@pytest.mark.parametrize(
    ("text", "name", "says", "row"),
    [
        (samples.BURSTGPT.replace("40,8", "-40,8"), "a.csv", "row 3: Request tokens must be .* got '-40'", 3),
        (samples.BURSTGPT.replace("40,8", "4x,8"), "a.csv", "row 3: Request tokens must be .* got '4x'", 3),
        (samples.BURSTGPT.replace("40,8", "1.5,8"), "a.csv", "row 3: Request tokens must be a whole number", 3),
        (samples.BURSTGPT.replace("\n90,", "\n-1,"), "a.csv", "row 4: Timestamp must be .* got '-1'", 4),
        (samples.BURSTGPT.replace("\n90,", "\nnan,"), "a.csv", "row 4: Timestamp must be", 4),
        (samples.BURSTGPT.replace("\n90,", "\n1e300,"), "a.csv", "row 4: Timestamp must be", 4),
        (samples.BURSTGPT.replace("150,30", "1e300,30"), "a.csv", "row 4: Request tokens must be", 4),
        (samples.MOONCAKE.replace("1200", "1" + 400 * "0"), "a.jsonl", "row 2: input_length must be", 2),
        (samples.SHAREGPT.replace('"conversations"', '"talk"').replace('"talk"', '"conversations"', 2), "a.json",
         "row 3: a row needs conversations: conversations is missing", 3),
        (samples.BURSTGPT.replace("\n90,", "\n2,"), "a.csv", r"not sorted: row 4 .* 2.0 s, the row before .* 6.0 s; .*--sort", 4),
        (samples.BURSTGPT.replace("90,7,", "90,"), "a.csv", "row 4: 7 values for 8 columns", 4),
        (samples.AZURE.replace("2023-11-16 18:15:50.9951690", "yesterday"), "a.csv", "row 2: TIMESTAMP must be a date", 2),
        (samples.AZURE.replace("18:15:50", "18:15:40"), "a.csv", "not sorted: row 2 comes 5.68.* s before the first one; .*--sort", 2),
        (samples.MOONCAKE.replace("[1, 2, 3]", "[1, 2]"), "a.jsonl", "row 2: 2 hash_ids for 1200 tokens, .* make 3", 2),
        (samples.MOONCAKE.replace("[1, 2, 3]", "[1, 2, true]"), "a.jsonl", "row 2: hash_ids must be a list", 2),
        (samples.MOONCAKE.replace("1200", "true"), "a.jsonl", "row 2: input_length must be", 2),
        (samples.MOONCAKE.replace('"timestamp": 1500', '"time": 1500'), "a.jsonl", "row 2: a row needs .*timestamp is missing", 2),
        (samples.MOONCAKE.replace("1500,", "1500"), "a.jsonl", "row 2: not JSON", 2),
        (samples.MOONCAKE + "[1]", "a.jsonl", "row 4: a row must be an object", 4),
        (samples.SHAREGPT.replace('"value": "Where?"', '"value": 3'), "a.json", "row 1: turn 3 must have the texts", 1),
        (samples.SHAREGPT[:-2], "a.json", "row 4: expected one of", 4),
        (samples.SHAREGPT[:-20], "a.json", "row 3: not JSON", 3),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, text: str, name: str, says: str, row: int) -> None:
    reader = TraceReader(samples.write(tmp_path, text, name))
    with pytest.raises(TraceError, match=says) as caught:
        list(reader)
    assert caught.value.row == row and isinstance(caught.value, ConfigError)


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    text = samples.BURSTGPT.replace("40,8", "x,8").replace("90,7,", "90,")
    reader = TraceReader(samples.write(tmp_path, text), ReadOptions(skip_bad=True))
    assert [arrival.t_s for arrival in reader] == [5.0]
    assert reader.counts.dropped["bad row"] == 2 and reader.counts.bad_rows == [3, 4]
    assert reader.counts.as_text().endswith("bad rows: 3, 4")


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    path = samples.write(tmp_path, samples.BURSTGPT.replace("Log Type", "Kind"))
    for name in (None, "burstgpt"):
        with pytest.raises(
            SchemaError, match="missing column 'Log Type' of the burstgpt .* found: 'Timestamp'"
        ) as caught:
            detect(path, name)
        assert caught.value.missing == ("Log Type",) and "Kind" in caught.value.found
    with pytest.raises(SchemaError, match="missing column 'arrived_at'"):
        detect(path, "vidur")
    with pytest.raises(ConfigError, match="unknown trace format 'vidor', did you mean 'vidur'"):
        detect(path, "vidor")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rows"),
        ("\n \n", "has no rows"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n", "no rows that are requests: 0 rows read"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n1,2,0\n", r"1 rows read = 1 dropped \(1 no output tokens\)"),
        ("[]", "missing column"),
        ("[v]", "row 1: not JSON"),
        ("[1]", "row 1: a row must be an object"),
        ('[{"conversations": []} {}]', "row 2: expected one of"),
    ],
)
def test_a_trace_without_requests_is_an_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        read_trace(samples.write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read the trace .*no.csv: No such file"):
        TraceReader(tmp_path / "no.csv")
    binary = tmp_path / "a.csv"
    binary.write_bytes(samples.VIDUR.encode() + b"\xff\xfe,1,2\n")
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_trace(binary)
    broken = tmp_path / "a.csv.gz"
    broken.write_bytes(gzip.compress(samples.VIDUR.encode())[:-9])
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_trace(broken)


def test_marks_packing_and_line_ends_change_nothing(tmp_path: Path) -> None:
    plain = read_trace(samples.write(tmp_path, samples.BURSTGPT))
    marked = tmp_path / "b.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + samples.BURSTGPT.replace("\n", "\r\n").encode())
    packed = tmp_path / "c.csv.gz"
    packed.write_bytes(gzip.compress(samples.BURSTGPT.encode()))
    assert read_trace(marked) == read_trace(packed) == plain


def test_sorting_and_windows_and_the_first_n(tmp_path: Path) -> None:
    path = samples.write(tmp_path, samples.BURSTGPT.replace("\n90,", "\n2,"))
    assert [arrival.t_s for arrival in TraceReader(path, ReadOptions(sort=True))] == [2.0, 5.0, 6.0]
    wanted = Filter(model="GPT-4", start_s=5.0, end_s=90.0)
    reader = TraceReader(samples.write(tmp_path, samples.BURSTGPT), ReadOptions(wanted=wanted))
    assert [arrival.t_s for arrival in reader] == [5.0]
    assert reader.counts.dropped == {"other model": 2, "outside the window": 1, "no prompt tokens": 1}
    assert not reader.counts.failed_s, "the failed call was to the other model"
    assert [a.t_s for a in read_trace(path, num_requests=1)] == [5.0], "the rest of the file is not looked at"
    by_log = TraceReader(samples.write(tmp_path, samples.BURSTGPT), ReadOptions(wanted=Filter(log_type="API log")))
    assert len(list(by_log)) == len(list(by_log)) == 1 and by_log.counts.dropped["other log type"] == 2


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 40), st.integers(1, 40))
def test_a_window_of_conversations_is_the_window_of_their_requests(
    tmp_path_factory: pytest.TempPathFactory, turns: list[int], start_s: int, width_s: int
) -> None:
    """Conversations overlap, and a window may take only the end of one; order and books stay right."""
    exchange = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
    text = json.dumps([{"conversations": exchange * count} for count in turns])
    path = samples.write(tmp_path_factory.mktemp("trace"), text, "a.json")
    settings = FormatSettings(turn_gap_s=7.0)
    wanted = Filter(start_s=start_s, end_s=start_s + width_s)
    every = list(TraceReader(path, ReadOptions(settings=settings)))
    inside = [each for each in every if start_s <= each.t_s < start_s + width_s]
    reader = TraceReader(path, ReadOptions(settings=settings, wanted=wanted))
    if inside:
        assert list(reader) == inside
        assert reader.counts.num_requests + sum(reader.counts.requests_unwanted.values()) <= len(every) == sum(turns)
    else:
        with pytest.raises(TraceError, match="no rows that are requests"):
            list(reader)
    assert reader.counts.rows_read == reader.counts.rows_kept + sum(reader.counts.dropped.values())


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 5000), st.integers(0, 900)), min_size=1), st.booleans())
def test_the_books_always_balance(
    tmp_path_factory: pytest.TempPathFactory, raw: list[tuple[int, int, int]], sort: bool
) -> None:
    """Any numbers: either the whole file is read and every row is kept or counted, or the error names the first row out of order."""
    lines = [f"{t},,,m,{prompt},{output},0,API log" for t, prompt, output in raw]
    text = "\n".join([samples.BURSTGPT.splitlines()[0], *lines]) + "\n"
    path = samples.write(tmp_path_factory.mktemp("trace"), text)
    kept = [(float(t), prompt, output) for t, prompt, output in raw if prompt and output]
    reader = TraceReader(path, ReadOptions(sort=sort))
    try:
        found = [(arrival.t_s, arrival.prompt_len, arrival.max_new) for arrival in reader]
    except TraceError as error:
        is_unsorted = any(b[0] < a[0] for a, b in pairwise(kept))
        assert not kept or (is_unsorted and not sort and error.row is not None)
        return
    assert found == (sorted(kept, key=lambda each: each[0]) if sort else kept)
    counts = reader.counts
    assert counts.rows_read == len(raw) == counts.rows_kept + sum(counts.dropped.values())
    assert len(counts.failed_s) == sum(not output for _, _, output in raw)


@given(st.text(max_size=200))
def test_no_text_is_a_crash(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Anything is a trace or a TraceError, in every format."""
    path = tmp_path_factory.mktemp("trace") / "a.txt"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    for head in ("", samples.VIDUR, samples.MOONCAKE, "["):
        path.write_text(head + text, encoding="utf-8", errors="replace", newline="")
        try:
            list(TraceReader(path, ReadOptions(skip_bad=True, sort=True)))
        except TraceError:
            continue


json_values = st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3))
objects = st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=5)


@given(objects, st.integers(1, 40), st.sampled_from([None, 1]))
def test_an_array_in_pieces_is_the_array(values: list[dict[str, object]], chunk: int, indent: int | None) -> None:
    """The oracle is the standard library on the whole text."""
    text = json.dumps(values, indent=indent)
    before = rows.CHUNK_CHARS
    try:
        rows.CHUNK_CHARS = chunk
        assert list(rows_of(io.StringIO(text), "json")) == values
    finally:
        rows.CHUNK_CHARS = before


@given(st.lists(st.lists(st.text(alphabet='ab,"\n é', max_size=6), min_size=3, max_size=3), max_size=6))
def test_csv_fields_may_hold_anything(values: list[list[str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["x", "y", "z"], *values])
    out.seek(0)
    found = [list(row.values()) for row in rows_of(out, "csv") if not isinstance(row, BadRow)]
    assert found == values


def test_a_record_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_CHARS", 10)
    monkeypatch.setattr(rows, "MAX_RECORD_CHARS", 50)
    file = io.StringIO('[{"a": "' + "x" * 1000)
    (bad,) = rows_of(file, "json")
    assert isinstance(bad, BadRow) and bad.is_final and file.tell() < 100
