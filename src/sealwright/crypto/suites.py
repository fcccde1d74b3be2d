"""Algorithm suites by name. A trust file or policy lists the names it accepts, so a downgrade is refused."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sealwright.crypto.hpke import Aead, Kdf, Kem
from sealwright.errors import AppraisalError, AppraisalFailure, MessageFormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One set of algorithms that are used together."""

    name: str
    kem: Kem
    kdf: Kdf = Kdf.HKDF_SHA256
    aead: Aead = Aead.AES_256_GCM
    signature: str = "Ed25519"
    hash: str = "SHA-256"


DEFAULT = Suite(name="default", kem=Kem.XWING)
CLASSICAL = Suite(name="classical", kem=Kem.X25519)


def accepted_suite(name: str, accepted: Collection[str]) -> Suite:
    """Return the suite `name`, which is known and stands in `accepted`.

    Raises:
        MessageFormatError: no suite has this name (`unknown-suite`).
        AppraisalError: the suite is not accepted here (`suite-not-accepted`).
    """
    for suite in (DEFAULT, CLASSICAL):
        if suite.name == name:
            break
    else:
        raise MessageFormatError("no suite has this name", code="unknown-suite", stage="suite")
    if name not in accepted:
        text = f"suite {name!r} is not accepted here (accepted: {', '.join(sorted(accepted)) or 'none'})"
        raise AppraisalError([AppraisalFailure(text, code="suite-not-accepted")], stage="suite")
    return suite
