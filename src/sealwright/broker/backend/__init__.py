"""Where keys are wrapped: an embedded key, an HSM or a KMS behind one Protocol.

Spec: docs/spec/key-backends.md.
"""

from __future__ import annotations

from sealwright.broker.backend.base import Facts, KeyBackend, WrapContext, Wrapped, wiped
from sealwright.broker.backend.embedded import EmbeddedBackend
from sealwright.broker.backend.ring import Backends

__all__ = ["Backends", "EmbeddedBackend", "Facts", "KeyBackend", "WrapContext", "Wrapped", "wiped"]
