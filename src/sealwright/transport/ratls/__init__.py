"""Attested TLS: certificates that carry evidence for their own key (CCC interoperable RA-TLS).

Spec: docs/spec/attested-tls.md.
"""

from sealwright.transport.ratls.certificate import (
    WITHOUT_NONCE,
    AttestedCertificate,
    WithoutNonce,
    check_certificate,
    make_certificate,
    open_issuer,
)
from sealwright.transport.ratls.contexts import (
    Identity,
    accept,
    attested,
    client_context,
    connect,
    server_context,
)
from sealwright.transport.ratls.names import Nonces
from sealwright.transport.ratls.sockets import AttestationRefused

__all__ = [
    "WITHOUT_NONCE",
    "AttestationRefused",
    "AttestedCertificate",
    "Identity",
    "Nonces",
    "WithoutNonce",
    "accept",
    "attested",
    "check_certificate",
    "client_context",
    "connect",
    "make_certificate",
    "open_issuer",
    "server_context",
]
