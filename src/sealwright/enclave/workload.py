"""What the platform gives to the code that it started: the quoter's `Workload`, as the enclave sees it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Protocol


class Workload(Protocol):
    """The measured workload's only way to the world. Untrusted but for what the platform measures."""

    @property
    def config(self) -> bytes:
        """The canonical enclave config, as it stands in the measured register."""

    @property
    def unverified_payload(self) -> bytes:
        """Bytes of the host."""

    @property
    def listener(self) -> socket.socket | None:
        """The listening socket that clients reach."""

    @property
    def extra_fds(self) -> Mapping[str, int]:
        """Descriptors the host handed over, by name: unverified."""

    @property
    def claims(self) -> Mapping[str, str]:
        """How it was started, as its quotes say."""

    @property
    def platform(self) -> str:
        """What `quote` returns evidence of, as envelopes name it."""

    def quote(self, report_data: bytes) -> bytes:
        """Return an evidence envelope over 64 bytes."""

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connection to a broker of the config."""
