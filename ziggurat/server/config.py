# SPDX-License-Identifier: Apache-2.0
"""What the user asks of the server: one frozen dataclass; command-line flags are generated from it, as from EngineConfig."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.server.console import FORMATS, LEVELS
from ziggurat.units import parse_size

DEFAULT_PORT = 8000
MAX_PORT = 65535
MIN_BODY_BYTES = 1024
METRICS_COMPAT = ("none", "vllm")
MEMORY_PRESSURE = ("ignore", "follow")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of the HTTP edge.

    Raises:
        ConfigError: a value is out of range; the message has the number and the bound.
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in", group="server")
    port: int = option(DEFAULT_PORT, "port to listen on; 0 picks a free one and prints it", group="server")
    uds: Path | None = option(None, "listen on this Unix socket instead of host and port", group="server")
    shutdown_timeout: float = option(
        30.0, "seconds that running requests get to finish after SIGTERM or Ctrl-C; 0 aborts them", group="server"
    )
    api_key: tuple[str, ...] = option(
        (),
        "key that requests to /v1, /tokenize and /detokenize must bring; may be given several times",
        group="access",
        is_secret=True,
    )
    api_key_file: Path | None = option(None, "file with one such key per line", group="access")
    admin_api_key: tuple[str, ...] = option(
        (), "key for routes that change state (default: the API keys)", group="access", is_secret=True
    )
    memory_pressure: str = option(
        "ignore",
        "follow: shrink the budget when the control group's limit does or the kernel stalls for memory, and grow it back",
        choices=MEMORY_PRESSURE,
        group="server",
    )
    session_folder: Path | None = option(
        None, "where clients may save the KV of their sessions; without it they cannot", group="server"
    )
    max_body_size: str | int = option("4MiB", "largest request body; more gets 413", group="server")
    body_timeout: float = option(
        30.0, "seconds a client may take to send the head of a request, and then its body", group="server"
    )
    log_interval: float = option(5.0, "seconds between console lines while requests run; 0 is silent", group="log")
    log_format: str = option("text", "text for people, json for one object per line", choices=FORMATS, group="log")
    log_level: str = option("info", "least severe lines that are written", choices=LEVELS, group="log")
    log_requests: bool = option(False, "a line per HTTP request, without what it says", group="log")
    metrics_compat: str = option("none", "vllm: give /metrics under vllm: too", choices=METRICS_COMPAT, group="server")

    def __post_init__(self) -> None:
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 0 <= self.port <= MAX_PORT:
            raise ConfigError(f"port must be between 0 and {MAX_PORT}, got {self.port!r}")
        if not self.host:
            raise ConfigError("host must not be empty; 127.0.0.1 serves this machine only, 0.0.0.0 every machine")
        for name, choices in (
            ("log_format", FORMATS),
            ("log_level", LEVELS),
            ("metrics_compat", METRICS_COMPAT),
            ("memory_pressure", MEMORY_PRESSURE),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("shutdown_timeout", "log_interval"):
            value = getattr(self, name)
            if not 0 <= value <= 86_400:
                raise ConfigError(f"{name} must be at least 0 and at most 86400 seconds, got {value!r}")
        if not 0 < self.body_timeout <= 86_400:
            raise ConfigError(f"body_timeout must be above 0 and at most 86400 seconds, got {self.body_timeout!r}")
        if self.max_body_bytes < MIN_BODY_BYTES:
            raise ConfigError(f"max_body_size must be at least {MIN_BODY_BYTES} bytes, got {self.max_body_size!r}")

    @property
    def max_body_bytes(self) -> int:
        """``max_body_size`` in bytes."""
        return parse_size(self.max_body_size)
