"""A workload that no quoter started: quotes by a test platform, plain sockets, nothing hardened."""

from __future__ import annotations

import hashlib
import socket
import warnings
from collections.abc import Mapping

from sealwright.errors import AppraisalError, AppraisalFailure
from sealwright.testing.software import FakePlatformWarning, SoftwareTestPlatform


class FakeWorkload:
    """Stands in for `sealwright.attester.software.Workload`; what it quotes was never measured."""

    def __init__(
        self,
        platform: SoftwareTestPlatform,
        *,
        code: bytes,
        config: bytes,
        payload: bytes,
        peers: Mapping[tuple[str, int], tuple[str, int]],
        listener: socket.socket | None = None,
        extra_fds: Mapping[str, int] | None = None,
        claims: Mapping[str, str] | None = None,
    ) -> None:
        """Set up.

        Args:
            code: what register 0 shall say, 32 bytes.
            peers: who may be connected to, and where they really are.
        """
        warnings.warn("FakeWorkload runs what nobody measured", FakePlatformWarning, stacklevel=2)
        self.config = config
        self.unverified_payload = payload
        self.listener = listener
        self.extra_fds = dict(extra_fds or {})
        self.claims = dict(claims or {})
        self.platform = "software"
        self.peers = dict(peers)
        self._platform = platform
        self._registers = (code, hashlib.sha256(config).digest())

    def quote(self, report_data: bytes) -> bytes:
        """Return an envelope over `report_data` (64 bytes)."""
        return self._platform.quote(report_data, self._registers, self.claims).encode()

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connection to a named peer.

        Raises:
            AppraisalError: `peer-not-allowed`.
        """
        if (host, port) not in self.peers:
            text = f"{host}:{port} is not a peer of this workload"
            raise AppraisalError([AppraisalFailure(text, code="peer-not-allowed")], stage="connect")
        return socket.create_connection(self.peers[host, port], timeout=10)
