# SPDX-License-Identifier: Apache-2.0
"""Facts of this machine and this process: memory limits, what the process uses, cores.

Everything is read below one root folder, so that a test can describe any machine as a tree of small files.
Sources: proc(5), cgroups(7), the kernel's admin-guide on cgroup-v1/memory and cgroup-v2.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ziggurat.errors import DoesNotFit
from ziggurat.units import KIB, MIB, format_bytes

# Version 1 writes "no limit" as the largest page-aligned int64; no machine has an exbibyte.
_NO_LIMIT_BYTES = 1 << 60
MIN_HEADROOM_BYTES = 256 * MIB
HEADROOM_RATIO = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMemory:
    """Memory of the control group that limits us: the one with the lowest limit among our own and its ancestors.

    Attributes:
        limit_bytes: None when no group has a limit.
        usage_bytes: of that group (page cache included, other processes too); our own group's when nothing limits us; None if unknown.
    """

    limit_bytes: int | None
    usage_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """What the process has in RAM.

    Attributes:
        rss_bytes: all resident pages.
        pss_bytes: the same, but a page mapped n times counts 1/n; equal to RSS where the kernel does not tell.
        charged_bytes: what budgets are checked against: Pss, but pages of mapped files (libraries, above all) in full. Never below
            Pss, and it does not change when another process that maps the same libraries comes or goes.
        has_pss: whether ``pss_bytes`` is real.
    """

    rss_bytes: int
    pss_bytes: int
    charged_bytes: int
    has_pss: bool


@dataclass(frozen=True, slots=True)
class _Mount:
    """One cgroup file system: ``root`` is the group that is visible at ``point``."""

    version: int
    root: str
    point: Path
    controllers: tuple[str, ...]


class Machine:
    """Reads a machine's files when asked; keeps nothing.

    Args:
        root: where ``proc`` and ``sys`` are.
        pid: the process, ``self`` for this one.
    """

    def __init__(self, root: Path = Path("/"), pid: int | str = "self") -> None:
        self.root = root
        self._process = root / "proc" / str(pid)

    def ram_bytes(self) -> int:
        """MemTotal: the RAM that the kernel manages."""
        return _kib_fields(self.root / "proc" / "meminfo")["MemTotal"]

    def process_memory(self) -> ProcessMemory:
        """RSS and Pss now. Walks the page tables (about a millisecond per GiB): not for every step."""
        try:
            fields = _kib_fields(self._process / "smaps_rollup")
            rss_bytes, pss_bytes = fields["Rss"], fields["Pss"]
            return ProcessMemory(
                rss_bytes=rss_bytes,
                pss_bytes=pss_bytes,
                charged_bytes=max(pss_bytes, pss_bytes + self._shared_file_bytes(fields)),
                has_pss=True,
            )
        except (OSError, KeyError):
            # No such file before Linux 4.14, and none that may be read in some sandboxes.
            rss_bytes = self.rss_bytes()
            return ProcessMemory(rss_bytes=rss_bytes, pss_bytes=rss_bytes, charged_bytes=rss_bytes, has_pss=False)

    def _shared_file_bytes(self, rollup: dict[str, int]) -> int:
        """What Pss leaves out of our pages of mapped files because others map them too; 0 on kernels that do not split Pss (before 5.4)."""
        if "Pss_File" not in rollup or "Anonymous" not in rollup:
            return 0
        shmem_bytes = _kib_fields(self._process / "status").get("RssShmem", 0)
        return rollup["Rss"] - rollup["Anonymous"] - shmem_bytes - rollup["Pss_File"]

    def rss_bytes(self) -> int:
        """RSS from the kernel's own counter: cheap."""
        return int((self._process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def group_memory(self) -> GroupMemory:
        """The memory limit of our control groups, versions 1 and 2 (both may be mounted; the lower limit counts)."""
        found = GroupMemory(limit_bytes=None, usage_bytes=None)
        for folder, version in self._groups("memory"):
            limits = [_limit_bytes(folder / name) for name in _LIMIT_FILES[version]]
            limit_bytes = min((limit for limit in limits if limit is not None), default=None)
            usage_bytes = _integer(folder / _USAGE_FILE[version])
            is_first = found.limit_bytes is None and found.usage_bytes is None
            is_lower = limit_bytes is not None and (found.limit_bytes is None or limit_bytes < found.limit_bytes)
            if is_first or is_lower:
                found = GroupMemory(limit_bytes=limit_bytes, usage_bytes=usage_bytes)
        return found

    def memory_limit_bytes(self) -> int:
        """What the process can have at most: min(control group limit, RAM)."""
        limit_bytes = self.group_memory().limit_bytes
        ram_bytes = self.ram_bytes()
        return ram_bytes if limit_bytes is None else min(limit_bytes, ram_bytes)

    def cpu_quota(self) -> float | None:
        """Cores' worth of time that the control groups allow, or None."""
        quotas = []
        for folder, version in self._groups("cpu"):
            if version == 2:
                quota, period = (_words(folder / "cpu.max") or ["max", "100000"])[:2]
            else:
                quota, period = (
                    (_words(folder / name) or ["-1"])[0] for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                )
            if quota != "max" and int(quota) > 0 and int(period) > 0:
                quotas.append(int(quota) / int(period))
        return min(quotas, default=None)

    def usable_cores(self, *, num_affine: int | None = None) -> int:
        """Cores to start threads for: the affinity mask, and no more than the whole cores of the quota.

        A quota of 1.5 gives 1: with two threads at a barrier the throttled one would make both wait.

        Args:
            num_affine: cores of the affinity mask; asked from the kernel when None.
        """
        cores = len(os.sched_getaffinity(0)) if num_affine is None else num_affine
        quota = self.cpu_quota()
        return cores if quota is None else max(1, min(cores, int(quota)))

    def _groups(self, controller: str) -> Iterator[tuple[Path, int]]:
        """(folder, version) of our group of a controller and of its visible ancestors, innermost first."""
        memberships = _memberships(self._process / "cgroup")
        for mount in _mounts(self._process / "mountinfo"):
            if mount.version == 1 and controller not in mount.controllers:
                continue
            group = memberships.get(controller if mount.version == 1 else "")
            if group is None:
                continue
            # In a container the mount shows only the subtree below its root; a group outside of it shows as the mount itself.
            visible = mount.root.rstrip("/")
            relative = group[len(visible) :] if group == visible or group.startswith(visible + "/") else ""
            parts = [part for part in relative.split("/") if part and part != ".."]
            top = self.root / mount.point.relative_to("/")
            for depth in range(len(parts), -1, -1):
                folder = top.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder, mount.version


# Parameter numbers of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_HEAP_THRESHOLD_BYTES = 1 * MIB


def limit_heap_slack() -> bool:
    """Make the C heap return what is freed: blocks of 1 MiB and more go back at once, and no more than that stays at its top.

    By default glibc raises both thresholds up to 32 and 64 MiB as it sees larger blocks, and keeps that much freed memory for later;
    those pages count against the budget. Returns False where the C library has no ``mallopt``.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except AttributeError:
        return False
    # Setting a threshold also switches its adaptation off.
    is_set = mallopt(_M_MMAP_THRESHOLD, _HEAP_THRESHOLD_BYTES) and mallopt(_M_TRIM_THRESHOLD, _HEAP_THRESHOLD_BYTES)
    trim(0)
    return bool(is_set)


def default_budget(baseline_bytes: int, machine: Machine | None = None) -> int:
    """Bytes that the process may add over its baseline when nobody says: min(control group limit, RAM) - baseline - max(256 MiB, 5 %).

    Raises:
        DoesNotFit: nothing is left.
    """
    limit_bytes = (machine or Machine()).memory_limit_bytes()
    headroom_bytes = max(MIN_HEADROOM_BYTES, int(limit_bytes * HEADROOM_RATIO))
    budget_bytes = limit_bytes - baseline_bytes - headroom_bytes
    if budget_bytes <= 0:
        raise DoesNotFit(
            f"this machine (or its control group) has {format_bytes(limit_bytes)}; the process itself takes "
            f"{format_bytes(baseline_bytes)} and {format_bytes(headroom_bytes)} stay free for the rest of the system: "
            "raise the limit, or set --memory to say that it may be used up",
            needed_bytes=baseline_bytes + headroom_bytes + 1,
            available_bytes=limit_bytes,
        )
    return budget_bytes


# Over memory.high a group is throttled until it hardly moves: a limit for all practical purposes.
_LIMIT_FILES = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USAGE_FILE = {1: "memory.usage_in_bytes", 2: "memory.current"}


def _memberships(path: Path) -> dict[str, str]:
    """Controller -> group of /proc/self/cgroup lines ``id:controllers:group``; version 2 has no controllers and is filed under ""."""
    groups = {}
    for line in _lines(path):
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = group
    return groups


def _mounts(path: Path) -> Iterator[_Mount]:
    """Control group file systems of /proc/self/mountinfo:
    ``36 35 0:30 ROOT POINT options [optional fields] - TYPE source super-options``."""
    for line in _lines(path):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if kind[0] in ("cgroup", "cgroup2"):
            version = 2 if kind[0] == "cgroup2" else 1
            yield _Mount(version, _unescape(fields[3]), Path(_unescape(fields[4])), tuple(kind[2].split(",")))


def _unescape(text: str) -> str:
    """mountinfo writes blanks as octal escapes (a space is backslash 040)."""
    for code in ("040", "011", "012", "134"):
        text = text.replace("\\" + code, chr(int(code, 8)))
    return text


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []


def _integer(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _limit_bytes(path: Path) -> int | None:
    """A limit file's value; None for ``max``, for version 1's huge number and for no file."""
    limit_bytes = _integer(path)
    return None if limit_bytes is None or limit_bytes >= _NO_LIMIT_BYTES else limit_bytes


def _kib_fields(path: Path) -> dict[str, int]:
    """``Name:   123 kB`` lines, in bytes."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields[name] = int(words[0]) * KIB
    return fields
