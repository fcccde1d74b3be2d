"""The TPM 2.0 commands that attestation needs, one method each. TPM 2.0 Library part 3."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sealwright.attester.tpm.codec import EMPTY_PASSWORD, Answer, Auth, encode_command, parse_answer
from sealwright.attester.tpm.codes import AGAIN, RC_INITIALIZE, RC_NO_HANDLE, explain
from sealwright.attester.tpm.transport import Transport
from sealwright.errors import UnavailableError
from sealwright.evidence.tpm import TpmsAttest
from sealwright.evidence.tpmkey import TpmtPublic, TpmtSignature
from sealwright.evidence.tpmwire import (
    ALG_NULL,
    DIGEST_SIZE,
    HASH_IDS,
    HASHES,
    PCRS,
    SELECT_SIZE,
    Bank,
    PcrSelection,
    Reader,
    encode_selections,
    malformed,
    read_selections,
    sized,
    u16,
    u32,
)

RH_OWNER = 0x40000001
RH_NULL = 0x40000007
RH_ENDORSEMENT = 0x4000000B
_NO_SENSITIVE = sized(sized(b"") + sized(b""))  # no password, no data
_HT_PERSISTENT = 0x81  # type of a handle, its first byte
_SE_POLICY = 0x01
_CAP_PCRS = 0x00000005
_TRIES = 50  # of a busy TPM
_PAUSE_S = 0.02
_NV_CHUNK = 768  # bytes; every TPM reads so many at once
_MAX_BUFFER = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedKey:
    """A key in the TPM: persistent, or until it is flushed."""

    handle: int
    public: TpmtPublic

    @property
    def persistent(self) -> bool:
        """Whether it stays in the TPM: there is nothing to flush."""
        return self.handle >> 24 == _HT_PERSISTENT


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedKey:
    """A key that was created under a parent; its private part is sealed to this TPM."""

    private: bytes  # TPM2B_PRIVATE, its content
    public: TpmtPublic


class TpmRefusal(UnavailableError):
    """The TPM answered with an error; `response` is its code."""

    def __init__(self, command: str, response: int) -> None:
        super().__init__(f"the TPM refuses {command}: {explain(response)}", code="tpm-refused")
        self.response = response


class Tpm:
    """A TPM 2.0. Not thread-safe: one command at a time.

    Every method raises UnavailableError (`tpm-unreachable`; `tpm-refused`, as TpmRefusal) and EvidenceFormatError:
    what the TPM answered is not in its format.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def close(self) -> None:
        """Let go of the TPM."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def startup(self) -> None:
        """Start the TPM, if nobody has. Firmware and kernel do; a software TPM may not."""
        answer = self._run(0x144, parameters=u16(0))
        if answer.code not in (0, RC_INITIALIZE):
            raise TpmRefusal("Startup", answer.code)

    def shutdown(self) -> None:
        """Announce the end. Without it the TPM counts an attack, and its clock is no longer safe."""
        self._do("Shutdown", 0x145, parameters=u16(0))

    def pcr_banks(self) -> Mapping[Bank, frozenset[int]]:
        """Return the PCRs of each bank that is allocated and known here."""
        answer = self._do("GetCapability", 0x17A, parameters=u32(_CAP_PCRS) + u32(0) + u32(16))
        reader = answer.reader()
        reader.take(5)  # moreData, capability
        return {one.bank: frozenset(one.pcrs) for one in _known_selections(reader) if one.pcrs}

    def pcr_read(self, bank: Bank, pcrs: Iterable[int]) -> dict[int, bytes]:
        """Return PCR values by number. They may be of different moments: a quote tells."""
        left, found = sorted(set(pcrs)), dict[int, bytes]()
        while left:
            asked = encode_selections((PcrSelection(bank=bank, pcrs=tuple(left[:8])),))
            reader = self._do("PCR_Read", 0x17E, parameters=asked).reader()
            reader.take(4)  # pcrUpdateCounter
            selections = read_selections(reader)
            if [one.bank for one in selections] != [bank]:
                malformed("a TPM reads another bank than it was asked for")
            selection = selections[0]
            values = [reader.sized(64) for _ in range(reader.integer(4))]
            if not set(selection.pcrs) <= set(left) or {len(value) for value in values} - {DIGEST_SIZE[bank]}:
                malformed("a TPM reads other PCRs than it was asked for")
            if not selection.pcrs or len(values) != len(selection.pcrs):
                raise UnavailableError(f"the TPM has no PCR {left[0]} in bank {bank}", code="tpm-pcr-missing")
            found.update(zip(selection.pcrs, values, strict=True))
            left = [pcr for pcr in left if pcr not in found]
        return found

    def pcr_extend(self, pcr: int, digests: Mapping[Bank, bytes]) -> None:
        """Extend one PCR in the banks named. There is no way back but a reset."""
        if any(len(digest) != DIGEST_SIZE[bank] for bank, digest in digests.items()):
            raise ValueError("a digest has another length than its bank")
        values = b"".join(u16(HASH_IDS[bank]) + digest for bank, digest in digests.items())
        self._do("PCR_Extend", 0x182, (pcr,), (EMPTY_PASSWORD,), u32(len(digests)) + values)

    def create_primary(self, hierarchy: int, template: TpmtPublic) -> LoadedKey:
        """Return the primary key that `template` makes in `hierarchy`: the same one each time."""
        parameters = _NO_SENSITIVE + sized(template.encode()) + sized(b"") + u32(0)
        answer = self._do("CreatePrimary", 0x131, (hierarchy,), (EMPTY_PASSWORD,), parameters, handles=1)
        return LoadedKey(handle=answer.handles[0], public=_read_public(answer.reader()))

    def create(self, parent: LoadedKey, auth: Auth, template: TpmtPublic) -> CreatedKey:
        """Return a fresh key under `parent`."""
        parameters = _NO_SENSITIVE + sized(template.encode()) + sized(b"") + u32(0)
        reader = self._do("Create", 0x153, (parent.handle,), (auth,), parameters).reader()
        private = reader.sized(_MAX_BUFFER)
        return CreatedKey(private=private, public=_read_public(reader))

    def load(self, parent: LoadedKey, auth: Auth, key: CreatedKey) -> LoadedKey:
        """Load a key that was created under `parent`."""
        parameters = sized(key.private) + sized(key.public.encode())
        answer = self._do("Load", 0x157, (parent.handle,), (auth,), parameters, handles=1)
        return LoadedKey(handle=answer.handles[0], public=key.public)

    def read_public(self, handle: int) -> TpmtPublic:
        """Return the public area of a key that is loaded or persistent."""
        return _read_public(self._do("ReadPublic", 0x173, (handle,)).reader())

    def flush(self, handle: int) -> None:
        """Take a key or session out of the TPM."""
        self._do("FlushContext", 0x165, parameters=u32(handle))

    def evict_control(self, key: int, persistent: int) -> None:
        """Make a loaded key persistent at `persistent`, or, if both are the same, remove it from there."""
        self._do("EvictControl", 0x120, (RH_OWNER, key), (EMPTY_PASSWORD,), u32(persistent))

    def endorsement_session(self) -> Auth:
        """Return a policy session that PolicySecret of the endorsement hierarchy satisfies; good for one command."""
        start = sized(bytes(16)) + sized(b"") + bytes([_SE_POLICY]) + u16(ALG_NULL) + u16(HASH_IDS["sha256"])
        (session,) = self._do("StartAuthSession", 0x176, (RH_NULL, RH_NULL), (), start, handles=1).handles
        secret = sized(b"") * 3 + u32(0)  # nonceTPM, cpHashA, policyRef, expiration
        self._do("PolicySecret", 0x151, (RH_ENDORSEMENT, session), (EMPTY_PASSWORD,), secret)
        return Auth(session=session)

    def quote(
        self, key: LoadedKey, qualifying_data: bytes, selection: tuple[PcrSelection, ...]
    ) -> tuple[TpmsAttest, TpmtSignature]:
        """Return a quote by an attestation key, in the key's own scheme."""
        parameters = sized(qualifying_data) + u16(ALG_NULL) + encode_selections(selection)
        reader = self._do("Quote", 0x158, (key.handle,), (EMPTY_PASSWORD,), parameters).reader()
        return TpmsAttest.parse(reader.sized(_MAX_BUFFER)), TpmtSignature.parse(reader.rest())

    def activate_credential(
        self, key: LoadedKey, endorsement_key: LoadedKey, auth: Auth, blob: bytes, secret: bytes
    ) -> bytes:
        """Return what a CA encrypted to `endorsement_key` for `key` alone.

        Args:
            auth: of the endorsement key.
            blob: TPM2B_ID_OBJECT, its content. secret: TPM2B_ENCRYPTED_SECRET, its content.
        """
        handles, auths = (key.handle, endorsement_key.handle), (EMPTY_PASSWORD, auth)
        return (
            self._do("ActivateCredential", 0x147, handles, auths, sized(blob) + sized(secret))
            .reader()
            .sized(64)
        )

    def nv_size(self, index: int) -> int | None:
        """Return how many bytes an NV index holds; None: there is no such index."""
        answer = self._run(0x169, (index,))
        if answer.code == RC_NO_HANDLE:
            return None
        if answer.code:
            raise TpmRefusal("NV_ReadPublic", answer.code)
        public = Reader(answer.reader().sized(_MAX_BUFFER), "an NV index")
        public.take(4 + 2 + 4)  # nvIndex, nameAlg, attributes
        public.sized(64)
        return public.integer(2)

    def nv_read(self, index: int, *, owner: bool = False) -> bytes | None:
        """Return what an NV index holds; None: there is no such index.

        Args:
            owner: authorized by the owner, with the empty password; else by the index itself, with its own empty one.
        """
        authority = RH_OWNER if owner else index
        size = self.nv_size(index)
        if size is None:
            return None
        found = b""
        while len(found) < size:
            asked = u16(min(_NV_CHUNK, size - len(found))) + u16(len(found))
            answer = self._do("NV_Read", 0x14E, (authority, index), (EMPTY_PASSWORD,), asked)
            part = answer.reader().sized(_NV_CHUNK)
            if not part:
                malformed("a TPM reads less from NV than there is")
            found += part
        return found

    def _do(
        self,
        name: str,
        code: int,
        at: tuple[int, ...] = (),
        auths: tuple[Auth, ...] = (),
        parameters: bytes = b"",
        *,
        handles: int = 0,
    ) -> Answer:
        answer = self._run(code, at, auths, parameters, handles=handles)
        if answer.code:
            raise TpmRefusal(name, answer.code)
        return answer

    def _run(
        self,
        code: int,
        at: tuple[int, ...] = (),
        auths: tuple[Auth, ...] = (),
        parameters: bytes = b"",
        *,
        handles: int = 0,
    ) -> Answer:
        command = encode_command(code, at, auths, parameters)
        for _ in range(_TRIES):
            answer = parse_answer(self._transport.send(command), handles=handles)
            if answer.code not in AGAIN:
                break
            time.sleep(_PAUSE_S)
        return answer


def _read_public(reader: Reader) -> TpmtPublic:
    return TpmtPublic.parse(reader.sized(_MAX_BUFFER))


def _known_selections(reader: Reader) -> Iterator[PcrSelection]:
    """Yield the selections whose hash is known here; a TPM may have others."""
    for _ in range(reader.integer(4)):
        bank, bitmap = HASHES.get(reader.integer(2)), reader.take(reader.integer(1))
        bits = int.from_bytes(bitmap[:SELECT_SIZE], "little")
        if bank is not None:
            yield PcrSelection(bank=bank, pcrs=tuple(pcr for pcr in range(PCRS) if bits >> pcr & 1))
