# SPDX-License-Identifier: Apache-2.0
"""Machines as trees of small files: control groups of both versions, nested, in and out of containers."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from ziggurat.errors import DoesNotFit
from ziggurat.memory.machine import Machine, default_budget
from ziggurat.units import GIB, KIB, MIB

V1_MEMORY = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_CPU = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"


def machine(
    tmp_path: Path, *, mounts: list[str], groups: str, files: dict[str, str] | None = None, ram: int = 8 * GIB
) -> Machine:
    disk = "20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw"
    tree = {
        "proc/meminfo": f"MemTotal:       {ram // KIB} kB\nMemFree:         100 kB\nHugePages_Total:       0\n",
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "\n".join([disk, *mounts]) + "\n",
        **(files or {}),
    }
    for name, text in tree.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(tmp_path)


def test_version_2_takes_the_lowest_limit_of_the_ancestors(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user.slice/app"
    found = machine(
        tmp_path,
        mounts=[V2.format(root="/")],
        groups="0::/user.slice/app\n",
        files={
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "1000\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{3 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": "5000\n",
            "sys/fs/cgroup/memory.stat": "anon 1\n",
        },
    )
    memory = found.group_memory()
    assert (memory.limit_bytes, memory.usage_bytes) == (3 * GIB, 5000)
    assert found.memory_limit_bytes() == 3 * GIB
    (tmp_path / group / "memory.max").write_text(f"{2 * GIB}\n")
    assert found.group_memory().limit_bytes == 2 * GIB
    assert found.group_memory().usage_bytes == 1000
    (tmp_path / group / "memory.high").write_text(f"{GIB}\n")
    assert found.group_memory().limit_bytes == GIB


def test_no_limit_anywhere_is_the_ram(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/app/memory.max": "max\n", "sys/fs/cgroup/app/memory.current": "77\n"}
    found = machine(tmp_path, mounts=[V2.format(root="/")], groups="0::/app\n", files=files)
    assert found.group_memory().limit_bytes is None
    assert found.group_memory().usage_bytes == 77
    assert found.memory_limit_bytes() == 8 * GIB


def test_version_1_reads_its_own_group_and_its_huge_number_is_no_limit(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    found = machine(
        tmp_path,
        mounts=[V1_MEMORY.format(root="/"), V1_CPU.format(root="/")],
        groups="4:memory:/jobs/one\n3:cpu,cpuacct:/jobs\n1:name=systemd:/x\n",
        files={
            f"{top}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{top}/jobs/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{top}/jobs/memory.usage_in_bytes": "123\n",
            f"{top}/jobs/one/memory.limit_in_bytes": "9223372036854771712\n",
            f"{top}/jobs/one/memory.usage_in_bytes": "55\n",
            f"{top}/other/memory.limit_in_bytes": "1\n",
            "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert found.group_memory().limit_bytes == 4 * GIB
    assert found.group_memory().usage_bytes == 123
    assert found.cpu_quota() == 2.5
    assert found.usable_cores(num_affine=8) == 2
    assert found.usable_cores(num_affine=1) == 1


@pytest.mark.parametrize("group", ["/docker/abc", "/docker/abc/sub", "/elsewhere", "/.."])
def test_in_a_container_the_mount_shows_a_subtree(tmp_path: Path, group: str) -> None:
    """The file names the group as the host sees it; the mount point is that group, or an ancestor inside the container."""
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n"}
    found = machine(tmp_path, mounts=[V1_MEMORY.format(root="/docker/abc")], groups=f"4:memory:{group}\n", files=files)
    assert found.group_memory().limit_bytes == GIB
    below = tmp_path / "sys/fs/cgroup/memory/sub/memory.limit_in_bytes"
    below.parent.mkdir()
    below.write_text(f"{GIB // 2}\n")
    assert found.group_memory().limit_bytes == (GIB // 2 if group == "/docker/abc/sub" else GIB)


def test_both_versions_mounted_the_lower_limit_counts(tmp_path: Path) -> None:
    unified = V2.format(root="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/unified/memory.max": f"{GIB}\n",
    }
    found = machine(tmp_path, mounts=[V1_MEMORY.format(root="/"), unified], groups="4:memory:/\n0::/\n", files=files)
    assert found.group_memory().limit_bytes == GIB


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", 8), ("150000 100000\n", 1), ("50000 100000\n", 1), ("9900000 100000\n", 8)]
)
def test_version_2_cpu_quota(tmp_path: Path, text: str, cores: int) -> None:
    found = machine(tmp_path, mounts=[V2.format(root="/")], groups="0::/a\n", files={"sys/fs/cgroup/a/cpu.max": text})
    assert found.usable_cores(num_affine=8) == cores


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    found = machine(tmp_path, mounts=[], groups="")
    assert found.group_memory().limit_bytes is None
    assert found.memory_limit_bytes() == 8 * GIB
    assert found.usable_cores(num_affine=3) == 3


def test_pss_falls_back_to_rss(tmp_path: Path) -> None:
    found = machine(tmp_path, mounts=[], groups="", files={"proc/self/statm": "5000 1000 300 10 0 900 0\n"})
    memory = found.process_memory()
    assert memory.rss_bytes == memory.pss_bytes == found.rss_bytes() > 0
    assert not memory.has_pss
    rollup = "00-ff ---p 00000000 00:00 0    [rollup]\nRss:    1780 kB\nPss:     265 kB\nPss_Dirty: 108 kB\n"
    (tmp_path / "proc/self/smaps_rollup").write_text(rollup)
    memory = found.process_memory()
    assert (memory.rss_bytes, memory.pss_bytes, memory.has_pss) == (1780 * KIB, 265 * KIB, True)
    assert memory.charged_bytes == memory.pss_bytes


def test_pages_of_libraries_count_in_full(tmp_path: Path) -> None:
    """Another process that maps the same libraries changes Pss, and must not change what is checked against the budget."""
    found = machine(tmp_path, mounts=[], groups="", files={"proc/self/status": "Name: x\nRssShmem:\t 40 kB\n"})
    lines = ("Rss: 1740", "Pss: {}", "Pss_Anon: 100", "Pss_File: {}", "Pss_Shmem: 20", "Anonymous: 100")
    rollup = "00-ff ---p 00:00 0 [rollup]\n" + "".join(f"{line} kB\n" for line in lines)
    for file_share in (1600, 800, 160):
        (tmp_path / "proc/self/smaps_rollup").write_text(rollup.format(120 + file_share, file_share))
        memory = found.process_memory()
        assert memory.pss_bytes == (120 + file_share) * KIB
        assert memory.charged_bytes == (100 + 20 + 1600) * KIB


def test_default_budget_is_the_rule_of_the_design(tmp_path: Path) -> None:
    small = machine(tmp_path / "small", mounts=[], groups="", ram=2 * GIB)
    assert default_budget(100 * MIB, small) == 2 * GIB - 100 * MIB - 256 * MIB
    large = machine(tmp_path / "large", mounts=[], groups="", ram=100 * GIB)
    assert default_budget(GIB, large) == 100 * GIB - GIB - 5 * GIB
    with pytest.raises(DoesNotFit) as error:
        default_budget(2 * GIB - 256 * MIB, small)
    assert error.value.available_bytes == 2 * GIB


def test_this_machine_can_be_read() -> None:
    here = Machine()
    memory = here.process_memory()
    assert 0 < memory.pss_bytes <= memory.rss_bytes < here.ram_bytes()
    assert memory.pss_bytes <= memory.charged_bytes < here.ram_bytes()
    assert 0 < here.memory_limit_bytes() <= here.ram_bytes()
    assert here.usable_cores() >= 1


def test_freed_memory_goes_back_to_the_system():
    """Blocks that glibc would keep for later (it adapts to the sizes it sees) must not count against the budget."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        pytest.skip("this C library has no mallopt")
    script = (
        "import ctypes\n"
        "from ziggurat.memory.machine import Machine, limit_heap_slack\n"
        "assert limit_heap_slack()\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = libc.memset.restype = ctypes.c_void_p\n"
        "libc.malloc.argtypes = [ctypes.c_size_t]\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]\n"
        "before = Machine().process_memory().rss_bytes\n"
        "for size in (2, 8, 24, 30):\n"
        "    block = libc.malloc(size << 20)\n"
        "    libc.memset(block, 1, size << 20)\n"
        "    assert Machine().process_memory().rss_bytes > before + (size - 1 << 20)\n"
        "    libc.free(block)\n"
        "    assert Machine().process_memory().rss_bytes < before + (1 << 20), size\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
