"""Commands and responses of TPM 2.0 on the wire: headers, authorizations, response codes.

TPM 2.0 Library part 1, section 18 (command and response structure), and part 3, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from sealwright.evidence.tpmwire import Reader, malformed, sized, u16, u32

NO_SESSIONS = 0x8001
SESSIONS = 0x8002
RS_PW = 0x40000009  # authorization by password, without a session


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Authorization of one handle: a password (empty by default), or a policy session that stands already."""

    session: int = RS_PW
    password: bytes = b""
    attributes: int = 0

    def encode(self) -> bytes:
        """Return TPMS_AUTH_COMMAND."""
        return u32(self.session) + sized(b"") + bytes([self.attributes]) + sized(self.password)


EMPTY_PASSWORD = Auth()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response with its code."""

    code: int
    handles: tuple[int, ...] = ()
    parameters: bytes = b""

    def reader(self) -> Reader:
        """Return a reader of the response parameters."""
        return Reader(self.parameters, "a TPM response")


def encode_command(
    code: int, handles: tuple[int, ...] = (), auths: tuple[Auth, ...] = (), parameters: bytes = b""
) -> bytes:
    """Return one command."""
    body = b"".join(u32(handle) for handle in handles)
    if auths:
        area = b"".join(auth.encode() for auth in auths)
        body += u32(len(area)) + area
    body += parameters
    return u16(SESSIONS if auths else NO_SESSIONS) + u32(10 + len(body)) + u32(code) + body


def parse_answer(raw: bytes, *, handles: int = 0) -> Answer:
    """Parse one response.

    Args:
        handles: how many the command's response has.

    Raises:
        EvidenceFormatError: `malformed-tpm`.
    """
    reader = Reader(raw, "a TPM response")
    tag, size, code = reader.integer(2), reader.integer(4), reader.integer(4)
    if size != len(raw) or tag not in (NO_SESSIONS, SESSIONS):
        malformed("a TPM response with a wrong tag or size")
    if code:
        reader.end()
        return Answer(code=code)
    found = tuple(reader.integer(4) for _ in range(handles))
    parameters = reader.take(reader.integer(4)) if tag == SESSIONS else reader.rest()
    return Answer(code=0, handles=found, parameters=parameters)
