"""Mocks of cloud key services, for want of the real ones: each keeps real keys and does the real cryptography.

MockAzureHsm and MockGoogleKms answer an httpx2 transport; MockAwsKms listens on loopback and speaks AWS's
JSON protocol, so that boto3 itself is tested. What they check of a request is what the vendors document.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sealwright.broker.backend.google import crc32c
from sealwright.crypto.canonical import canonical
from sealwright.crypto.encoding import b64url, b64url_decode
from sealwright.endorsement.bag import Endorsements
from sealwright.errors import SealwrightError
from sealwright.evidence.nitro import NitroDocument
from sealwright.verify.context import Context
from sealwright.verify.nitro import verify_nitro

TOKEN = "mock-access-token"


class _Versions:
    """AES keys by version, each enabled or not."""

    def __init__(self) -> None:
        self.keys: dict[str, AESGCM] = {}
        self.enabled: dict[str, bool] = {}

    def add(self, version: str) -> None:
        self.keys[version] = AESGCM(os.urandom(32))
        self.enabled[version] = True

    @property
    def last(self) -> str:
        return list(self.keys)[-1]


class _OverTransport:
    """What the two REST mocks share. `log` has what was asked, for tests that look."""

    def __init__(self) -> None:
        self.versions = _Versions()
        self.down = False
        self.overloaded = 0  # answers 503 so many times
        self.log: list[tuple[str, str]] = []
        self.bend: Any = lambda body: body  # alters each good answer

    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._handle)

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        if self.down:
            raise httpx2.ConnectError("mock is down", request=request)
        self.log.append((request.method, request.url.path))
        if self.overloaded:
            self.overloaded -= 1
            return httpx2.Response(503, text="busy")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return httpx2.Response(401, json={"error": {"code": 401, "status": "UNAUTHENTICATED"}})
        body = json.loads(request.content) if request.content else {}
        status, answer = self.answer(request.method, request.url.path, body)
        return httpx2.Response(status, json=self.bend(answer) if status == 200 else answer)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        raise NotImplementedError


class MockAzureHsm(_OverTransport):
    """Mock of a Managed HSM's key operations (REST 7.4): get, create, rotate, encrypt, decrypt, release."""

    def __init__(self, key: str = "kek") -> None:
        super().__init__()
        self.base = f"/keys/{key}"
        self.exportable = False
        self.released: list[dict[str, Any]] = []

    def rotate(self) -> None:
        self.versions.add(os.urandom(16).hex())

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path.endswith("/release"):
            return self._release(path, body)
        rest = path.removeprefix(self.base)
        if (method, rest) == ("POST", "/create"):
            assert body["kty"] == "oct-HSM"
            self.rotate()
            return 200, self._key()
        if not self.versions.keys:
            return 404, {"error": {"code": "KeyNotFound"}}
        if (method, rest) == ("POST", "/rotate"):
            self.rotate()
        if rest in ("", "/rotate"):
            return 200, self._key()
        *named, operation = rest.strip("/").split("/")
        version = named[0] if named else self.versions.last
        if version not in self.versions.keys:
            return 404, {"error": {"code": "KeyNotFound"}}
        if not self.versions.enabled[version]:
            return 403, {"error": {"code": "Forbidden", "innererror": {"code": "KeyDisabled"}}}
        return self._crypt(operation, version, body)

    def _crypt(self, operation: str, version: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert body["alg"] == "A256GCM"
        key, aad = self.versions.keys[version], b64url_decode(body["aad"])
        kid = f"https://mock.managedhsm.azure.net{self.base}/{version}"
        if operation == "encrypt":
            nonce = os.urandom(12)
            sealed = key.encrypt(nonce, b64url_decode(body["value"]), aad)
            parts = {"value": sealed[:-16], "iv": nonce, "tag": sealed[-16:], "aad": aad}
            return 200, {"kid": kid} | {name: b64url(part) for name, part in parts.items()}
        nonce, tag, sealed = (b64url_decode(body[name]) for name in ("iv", "tag", "value"))
        try:
            return 200, {"kid": kid, "value": b64url(key.decrypt(nonce, sealed + tag, aad))}
        except InvalidTag:
            return 400, {"error": {"code": "BadParameter"}}

    def _release(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.released.append({"path": path} | body)
        if body["target"] != "a.token.of-maa":
            return 403, {"error": {"code": "Forbidden"}}
        return 200, {"value": "a.jws.of-the-hsm"}

    def _key(self) -> dict[str, Any]:
        kid = f"https://mock.managedhsm.azure.net{self.base}/{self.versions.last}"
        attributes = {"enabled": self.versions.enabled[self.versions.last], "exportable": self.exportable}
        return {"key": {"kid": kid, "kty": "oct-HSM"}, "attributes": attributes}


class MockGoogleKms(_OverTransport):
    """Mock of Google Cloud KMS (REST v1): get, encrypt, decrypt, new versions, primary version; all CRC32C checked."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.primary = ""

    def rotate(self) -> None:
        self.versions.add(str(len(self.versions.keys) + 1))
        self.primary = self.versions.last

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        rest = path.removeprefix(f"/v1/{self.key}")
        if not self.versions.keys:
            return 404, {"error": {"code": 404, "status": "NOT_FOUND"}}
        if rest == "":
            state = "ENABLED" if self.versions.enabled[self.primary] else "DISABLED"
            return 200, {
                "purpose": "ENCRYPT_DECRYPT",
                "primary": {"name": self._name(self.primary), "state": state},
            }
        if rest == "/cryptoKeyVersions":
            self.versions.add(str(len(self.versions.keys) + 1))
            return 200, {"name": self._name(self.versions.last), "state": "ENABLED"}
        if rest == ":updatePrimaryVersion":
            self.primary = body["cryptoKeyVersionId"]
            return 200, {}
        return self._encrypt(body) if rest == ":encrypt" else self._decrypt(body)

    def _encrypt(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        plain, aad = _sent(body, "plaintext"), _sent(body, "additionalAuthenticatedData")
        if not self.versions.enabled[self.primary]:
            return 400, {"error": {"code": 400, "status": "FAILED_PRECONDITION"}}
        nonce = os.urandom(12)
        head = f"{self.primary}:".encode()
        sealed = head + nonce + self.versions.keys[self.primary].encrypt(nonce, plain, aad)
        return 200, {
            "name": self._name(self.primary),
            "ciphertext": base64.b64encode(sealed).decode(),
            "ciphertextCrc32c": str(crc32c(sealed)),
            "verifiedPlaintextCrc32c": True,
            "verifiedAdditionalAuthenticatedDataCrc32c": True,
            "protectionLevel": "HSM",
        }

    def _decrypt(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        sealed, aad = _sent(body, "ciphertext"), _sent(body, "additionalAuthenticatedData")
        version, _, rest = sealed.partition(b":")
        key = self.versions.keys.get(version.decode("ascii", "replace"))
        if key is None:
            return 400, {"error": {"code": 400, "status": "INVALID_ARGUMENT"}}
        if not self.versions.enabled[version.decode()]:
            return 400, {"error": {"code": 400, "status": "FAILED_PRECONDITION"}}
        try:
            plain = key.decrypt(rest[:12], rest[12:], aad)
        except InvalidTag:
            return 400, {"error": {"code": 400, "status": "INVALID_ARGUMENT"}}
        return 200, {
            "plaintext": base64.b64encode(plain).decode(),
            "plaintextCrc32c": str(crc32c(plain)),
            "usedPrimary": version.decode() == self.primary,
        }

    def _name(self, version: str) -> str:
        return f"{self.key}/cryptoKeyVersions/{version}"


def _sent(body: dict[str, Any], member: str) -> bytes:
    raw = base64.b64decode(body[member], validate=True)
    assert body[f"{member}Crc32c"] == str(crc32c(raw))
    return raw


class MockAwsKms:
    """Mock of AWS KMS's JSON 1.1 protocol on a loopback port. With `Recipient` it verifies the Nitro document.

    Unlike moto it answers a Recipient as KMS does: after checking the document's chain, signature, time and
    public key, with CiphertextForRecipient (BER with indefinite lengths, as AWS sends) and no Plaintext.
    """

    def __init__(self, platform: Any, now: Any) -> None:
        self.platform, self.now = platform, now
        self.versions = _Versions()
        self.ignores_recipient = False
        self.asked: list[str] = []
        mock = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                operation = self.headers["x-amz-target"].split(".")[1]
                assert self.headers["authorization"].startswith("AWS4-HMAC-SHA256 ")
                mock.asked.append(operation)
                try:
                    status, answer = 200, getattr(mock, f"op_{operation}")(body)
                except _AwsError as error:
                    status, answer = 400, {"__type": error.args[0], "message": error.args[0]}
                raw = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/x-amz-json-1.1")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def new_key(self) -> str:
        arn = f"arn:aws:kms:eu-central-1:111122223333:key/mock-{len(self.versions.keys) + 1}"
        self.versions.add(arn)
        return arn

    def op_DescribeKey(self, body: dict[str, Any]) -> dict[str, Any]:
        arn = body["KeyId"]
        if arn not in self.versions.keys:
            raise _AwsError("NotFoundException")
        return {
            "KeyMetadata": {
                "Arn": arn,
                "KeyId": arn.rsplit("/", 1)[1],
                "Enabled": self.versions.enabled[arn],
                "KeySpec": "SYMMETRIC_DEFAULT",
                "KeyUsage": "ENCRYPT_DECRYPT",
                "Origin": "AWS_KMS",
            }
        }

    def op_GenerateDataKeyWithoutPlaintext(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._sealed(body["KeyId"], os.urandom(32), body["EncryptionContext"])

    def op_Encrypt(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._sealed(body["KeyId"], base64.b64decode(body["Plaintext"]), body["EncryptionContext"])

    def op_ReEncrypt(self, body: dict[str, Any]) -> dict[str, Any]:
        plain = self._opened(body["SourceKeyId"], body["CiphertextBlob"], body["SourceEncryptionContext"])
        return self._sealed(body["DestinationKeyId"], plain, body["DestinationEncryptionContext"])

    def op_Decrypt(self, body: dict[str, Any]) -> dict[str, Any]:
        plain = self._opened(body["KeyId"], body["CiphertextBlob"], body["EncryptionContext"])
        if "Recipient" not in body or self.ignores_recipient:
            return {"KeyId": body["KeyId"], "Plaintext": base64.b64encode(plain).decode()}
        assert body["Recipient"]["KeyEncryptionAlgorithm"] == "RSAES_OAEP_SHA_256"
        public = self._recipient(base64.b64decode(body["Recipient"]["AttestationDocument"]))
        sealed = base64.b64encode(enveloped(plain, public)).decode()
        return {"KeyId": body["KeyId"], "CiphertextForRecipient": sealed}

    def _recipient(self, raw: bytes) -> RSAPublicKey:
        try:
            document = NitroDocument.parse(raw)
            context = Context(
                at=self.now + timedelta(minutes=1), roots=frozenset({self.platform.root_fingerprint})
            )
            verify_nitro(
                document, Endorsements(), expected_report_data=document.user_data or b"", context=context
            )
            public = load_der_public_key(document.public_key or b"")
        except (SealwrightError, ValueError):
            raise _AwsError("ValidationException") from None
        assert isinstance(public, RSAPublicKey)
        return public

    def _usable(self, arn: str) -> AESGCM:
        if arn not in self.versions.keys:
            raise _AwsError("NotFoundException")
        if not self.versions.enabled[arn]:
            raise _AwsError("DisabledException")
        return self.versions.keys[arn]

    def _sealed(self, arn: str, plain: bytes, context: dict[str, str]) -> dict[str, Any]:
        nonce = os.urandom(12)
        blob = b"mock" + nonce + self._usable(arn).encrypt(nonce, plain, canonical(context))
        return {"KeyId": arn, "CiphertextBlob": base64.b64encode(blob).decode()}

    def _opened(self, arn: str, blob: str, context: dict[str, str]) -> bytes:
        raw = base64.b64decode(blob)
        try:
            return self._usable(arn).decrypt(raw[4:16], raw[16:], canonical(context))
        except InvalidTag:
            raise _AwsError("InvalidCiphertextException") from None


class _AwsError(Exception):
    """Carries the code."""


def enveloped(plain: bytes, public: RSAPublicKey, *, indefinite: bool = True) -> bytes:
    """Return CMS EnvelopedData for one RSA key, by hand, so that our parser is held against another's bytes."""
    key, nonce = os.urandom(32), os.urandom(16)
    padder = PKCS7(128).padder()
    encryptor = Cipher(AES256(key), CBC(nonce)).encryptor()
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    wrapped = public.encrypt(key, OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None))
    sha256 = tlv(0x30, oid("608648016503040201") + tlv(5, b""))
    mgf1 = tlv(0x30, oid("2a864886f70d010108") + sha256)
    oaep = tlv(0x30, oid("2a864886f70d010107") + tlv(0x30, tlv(0xA0, sha256) + tlv(0xA1, mgf1)))
    recipient = tlv(0x30, tlv(2, b"\x02") + tlv(0x80, bytes(20)) + oaep + tlv(4, wrapped))
    cipher = tlv(0x30, oid("60864801650304012a") + tlv(4, nonce))
    if indefinite:
        content = b"\x30\x80" + oid("2a864886f70d010701") + cipher + b"\xa0\x80" + tlv(4, sealed[:16])
        content += tlv(4, sealed[16:]) + b"\0\0\0\0"
        body = b"\x30\x80" + tlv(2, b"\x02") + tlv(0x31, recipient) + content + b"\0\0"
        return b"\x30\x80" + oid("2a864886f70d010703") + b"\xa0\x80" + body + b"\0\0\0\0"
    content = tlv(0x30, oid("2a864886f70d010701") + cipher + tlv(0x80, sealed))
    body = tlv(0x30, tlv(2, b"\x02") + tlv(0x31, recipient) + content)
    return tlv(0x30, oid("2a864886f70d010703") + tlv(0xA0, body))


def tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def oid(value: str) -> bytes:
    return tlv(6, bytes.fromhex(value))
