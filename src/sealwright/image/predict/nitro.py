"""Nitro Enclaves: PCR 0, 1, 2 and 8 of an enclave image.

Facts: aws-nitro-enclaves-image-format. Spec: docs/spec/predicted-measurements.md, "Nitro Enclaves".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealwright.image.eif import Eif
from sealwright.image.predict.events import PredictedEvent, Prediction, predicted


def predict_nitro(image: Eif, certificate: x509.Certificate | None = None) -> Prediction:
    """Return PCR 0 (all), 1 (kernel, command line, first ramdisk), 2 (the other ramdisks) and 8 (who signed it).

    Args:
        certificate: of the key that signs the image; None: it is not signed, and PCR 8 stays zero.
    """
    boot = (image.kernel, image.cmdline.encode("ascii"))
    first, *rest = image.ramdisks
    events = [
        _event("pcr0", "kernel, command line and ramdisks", (*boot, *image.ramdisks)),
        _event("pcr1", "kernel, command line and first ramdisk", (*boot, first)),
        _event("pcr2", "ramdisks after the first", rest),
    ]
    if certificate is not None:
        events.append(_event("pcr8", "signing certificate", (certificate.public_bytes(Encoding.DER),)))
    return predicted(("pcr0", "pcr1", "pcr2", "pcr8"), events, "sha384")


def _event(register: str, what: str, parts: Sequence[bytes]) -> PredictedEvent:
    digest = hashlib.sha384()
    for part in parts:
        digest.update(part)
    return PredictedEvent(register=register, what=what, digest=digest.digest())
