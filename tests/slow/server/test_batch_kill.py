# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` at random moments of a batch of 2,000 requests: the finished file equals the uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

NUM_KILLS = 30
NUM_REQUESTS = 2000


def write_job(path: Path) -> None:
    rng = random.Random(3)
    words = [
        "the",
        "boat",
        "of",
        "Anna",
        "is",
        "on",
        "the",
        "lake",
        "and",
        "the",
        "piano",
        "in",
        "the",
        "garden",
        "of",
        "her",
        "house",
    ]
    beginnings = [" ".join(rng.choices(words, k=40)) for _ in range(12)]
    with path.open("w") as file:
        for number in range(NUM_REQUESTS):
            prompt = f"{rng.choice(beginnings)} {number} {' '.join(rng.choices(words, k=6))}"
            body = {"prompt": prompt, "max_tokens": rng.randint(1, 12), "temperature": rng.choice([0, 1])}
            if number % 50 == 7:
                body["max_tokens"] = "wrong"
            line = {"custom_id": f"c{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def start(job: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ziggurat", "batch", str(job), "-o", str(output), "--memory", "200MiB"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> bytes:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return errors


def test_the_file_of_a_killed_batch_is_the_uninterrupted_one(tmp_path: Path) -> None:
    job, whole, output = tmp_path / "job.jsonl", tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    write_job(job)
    began = time.monotonic()
    finish(start(job, whole))
    took_s = time.monotonic() - began
    rng = random.Random(11)
    num_killed = 0
    for _ in range(NUM_KILLS):
        process = start(job, output)
        time.sleep(rng.uniform(0.2, took_s * 0.3))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            num_killed += 1
        process.communicate()
        if output.exists():
            assert output.read_bytes() == whole.read_bytes()
            output.unlink()
    finish(start(job, output))
    assert output.read_bytes() == whole.read_bytes()
    assert num_killed >= NUM_KILLS // 2
    assert not output.with_name("out.jsonl.journal").exists()
