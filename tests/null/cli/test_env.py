# SPDX-License-Identifier: Apache-2.0
"""``env``: the facts of a described machine, no secrets, and no torch."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ziggurat.cli import env
from ziggurat.cli.main import main
from ziggurat.memory.machine import Machine

CPUINFO = """processor\t: 0
model name\t: A Processor @ 3 GHz
flags\t\t: fpu sse2 fma avx2 avx512f

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Two processors, 8 GiB, and a control group of version 2 that allows 1 GiB and one and a half cores."""
    proc, group = tmp_path / "proc" / "self", tmp_path / "sys" / "fs" / "cgroup"
    proc.mkdir(parents=True)
    group.mkdir(parents=True)
    (tmp_path / "proc" / "cpuinfo").write_text(CPUINFO, encoding="utf-8")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:        8388608 kB\n", encoding="utf-8")
    (proc / "smaps_rollup").write_text("Rss: 100 kB\nPss: 50 kB\n", encoding="utf-8")
    (proc / "cgroup").write_text("0::/\n", encoding="utf-8")
    mount = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    (proc / "mountinfo").write_text(mount, encoding="utf-8")
    (group / "memory.max").write_text("1073741824\n", encoding="utf-8")
    (group / "memory.current").write_text("1048576\n", encoding="utf-8")
    (group / "cpu.max").write_text("150000 100000\n", encoding="utf-8")
    return Machine(tmp_path)


def test_the_facts_of_a_machine(machine: Machine) -> None:
    report = env.report(machine)
    assert report["processor"]["name"] == "A Processor @ 3 GHz"
    assert report["processor"]["instruction_sets"] == ["avx2", "fma", "avx512f"]
    assert report["processor"]["quota_cores"] == 1.5
    assert report["processor"]["num_usable_cores"] == 1
    assert report["memory"] == {
        "ram_bytes": 8 << 30,
        "group_limit_bytes": 1 << 30,
        "group_usage_bytes": 1 << 20,
        "limit_bytes": 1 << 30,
        "has_pss": True,
    }
    text = env.as_text(report)
    assert "1.00 GiB" in text
    assert "avx2, fma, avx512f" in text


def test_versions_are_those_of_the_packages() -> None:
    packages = env.packages()
    assert packages["numpy"] == metadata.version("numpy")
    assert {"torch", "fastapi", "uvicorn", "tokenizers", "safetensors"} <= set(packages)


def test_names_of_requirements() -> None:
    for line, name in (("numpy", "numpy"), ("Torch>=2.4; extra == 'x'", "torch"), ("a_b-c.d[extra]~=1", "a_b-c.d")):
        assert env._package_name(line) == name


def test_names_of_settings_but_no_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ZIGGURAT_DATA", raising=False)
    monkeypatch.setenv("ZIGGURAT_API_KEY", "sk-hidden")
    assert main(["env", "--format", "json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["environment"]["settings"] == ["ZIGGURAT_API_KEY"]
    assert "sk-hidden" not in out
    assert str(Path.home()) not in out
    assert platform.node() not in out


def test_it_loads_no_torch() -> None:
    code = "import sys; from ziggurat.cli.main import main; main(['env']); main(['ps', '--help'])"
    check = f"import atexit, sys; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n{code}"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ziggurat\n")
    assert done.stderr == "False"
