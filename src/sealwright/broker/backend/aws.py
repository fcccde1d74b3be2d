"""AWS KMS. Needs the extra `aws`.

Spec: docs/spec/key-backends.md, Backends and In-backend release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sealwright.broker.backend.base import (
    Facts,
    WrapContext,
    Wrapped,
    denied,
    destroyed,
    extra_missing,
    key_missing,
    malformed,
    taken,
    unavailable,
    unfit,
    unwrap_failed,
)
from sealwright.broker.backend.rest import check_url
from sealwright.broker.backend.settings import AwsSettings
from sealwright.errors import AppraisalError, AppraisalFailure, SealwrightError, VerificationError

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
except ImportError as exc:  # the extra
    raise extra_missing("aws-kms", "aws") from exc

_DENIED = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "UnrecognizedClientException",
    }
)
_DESTROYED = frozenset({"DisabledException", "KMSInvalidStateException", "KeyUnavailableException"})
_UNWRAP_FAILED = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


class AwsBackend:
    """Symmetric KMS keys by ARN; the last of the list wraps."""

    def __init__(self, name: str, settings: AwsSettings, *, client: Any = None) -> None:
        """Open nothing yet. Args: client: a boto3 KMS client in place of our own, for tests."""
        if settings.url is not None:
            check_url(settings.url)
        self._name, self._settings = name, settings
        self._kms = client or boto3.client(
            "kms",
            region_name=settings.region,
            endpoint_url=settings.url,
            config=Config(
                connect_timeout=settings.timeout_s,
                read_timeout=settings.timeout_s,
                retries={"mode": "standard", "total_max_attempts": 2},
                proxies={},
            ),
        )

    @property
    def facts(self) -> Facts:
        """Say which key; KMS lets none of its own be read out."""
        return Facts(kind="aws-kms", key=self._arn, release="in-broker", exportable=False)

    def current(self) -> str:
        """Return the ARN that wraps, proved to be an enabled symmetric key whose material AWS made."""
        found = self._ask(self._arn, "describe_key", KeyId=self._arn).get("KeyMetadata", {})
        if found.get("Arn") != self._arn:
            raise malformed(self._name, "it describes another key")
        if not found.get("Enabled"):
            raise destroyed(self._name, self._arn)
        if found.get("KeySpec") != "SYMMETRIC_DEFAULT" or found.get("KeyUsage") != "ENCRYPT_DECRYPT":
            raise unfit(self._name, "is not a symmetric key for encryption")
        if found.get("Origin") not in ("AWS_KMS", "AWS_CLOUDHSM"):
            raise unfit(self._name, "has imported or external material, so others may have it")
        return self._arn

    def create(self, context: WrapContext) -> Wrapped:
        """Return a key that KMS made and showed to nobody, wrapped."""
        answer = self._ask(
            self._arn,
            "generate_data_key_without_plaintext",
            KeyId=self._arn,
            KeySpec="AES_256",
            EncryptionContext=_encryption_context(context),
        )
        return self._wrapped(answer)

    def wrap(self, key: bytearray, context: WrapContext) -> Wrapped:
        """Return `key` encrypted under the current ARN."""
        answer = self._ask(
            self._arn,
            "encrypt",
            KeyId=self._arn,
            Plaintext=bytes(key),
            EncryptionContext=_encryption_context(context),
        )
        return self._wrapped(answer)

    def unwrap(self, wrapped: Wrapped, context: WrapContext) -> bytearray:
        """Return the key, proved to be wrapped for exactly this context. Raises as the protocol says."""
        answer = self._ask(wrapped.version, "decrypt", **self._opened(wrapped, context))
        return taken(_bytes(answer, "Plaintext", self._name), self._name)

    def rewrap(self, wrapped: Wrapped, old: WrapContext, new: WrapContext) -> Wrapped:
        """Return the same key for another context, under the current ARN; the broker does not see it."""
        answer = self._ask(
            wrapped.version,
            "re_encrypt",
            CiphertextBlob=wrapped.payload,
            SourceKeyId=self._known(wrapped.version),
            SourceEncryptionContext=_encryption_context(old),
            DestinationKeyId=self._arn,
            DestinationEncryptionContext=_encryption_context(new),
        )
        return self._wrapped(answer)

    def release_to(self, wrapped: Wrapped, context: WrapContext, document: bytes) -> bytes:
        """Return CMS EnvelopedData: the key, sealed by KMS to the RSA key in a Nitro document.

        Args:
            document: the enclave's attestation document (COSE_Sign1), with `public_key`; KMS verifies it.

        Raises:
            AppraisalError: `recipient-refused`. VerificationError: `recipient-ignored`.
        """
        recipient = {"AttestationDocument": document, "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
        try:
            answer = self._ask(
                wrapped.version, "decrypt", Recipient=recipient, **self._opened(wrapped, context)
            )
        except _RecipientRefused as error:
            raise AppraisalError(
                [
                    AppraisalFailure(
                        f"KMS does not accept the document ({error.code})", code="recipient-refused"
                    )
                ],
                stage="backend",
            ) from None
        if answer.get("Plaintext"):
            raise VerificationError(
                "the key came back open: what answers there does not check documents, and is not AWS KMS",
                code="recipient-ignored",
                stage="backend",
            )
        return _bytes(answer, "CiphertextForRecipient", self._name)

    def rotate(self) -> str:
        """Refuse: a version is a KMS key of its own, made with AWS's tools and added to the settings."""
        text = "make another KMS key, add its ARN to `keys`, start the broker with it and use it again"
        raise AppraisalError([AppraisalFailure(text, code="backend-rotates-elsewhere")], stage="backend")

    def close(self) -> None:
        """Close the connections."""
        self._kms.close()

    @property
    def _arn(self) -> str:
        return self._settings.keys[-1]

    def _known(self, arn: str) -> str:
        if arn not in self._settings.keys:
            raise destroyed(self._name, arn)
        return arn

    def _opened(self, wrapped: Wrapped, context: WrapContext) -> dict[str, Any]:
        return {
            "CiphertextBlob": wrapped.payload,
            "KeyId": self._known(wrapped.version),
            "EncryptionContext": _encryption_context(context),
        }

    def _wrapped(self, answer: Mapping[str, Any]) -> Wrapped:
        if answer.get("KeyId") != self._arn:
            raise malformed(self._name, "it wrapped under another key")
        return Wrapped(version=self._arn, payload=_bytes(answer, "CiphertextBlob", self._name))

    def _ask(self, arn: str, operation: str, **arguments: Any) -> Mapping[str, Any]:
        call: Callable[..., Mapping[str, Any]] = getattr(self._kms, operation)
        try:
            return call(**arguments)
        except ClientError as exc:
            error = self._error(arn, str(exc.response.get("Error", {}).get("Code", ""))[:64], arguments)
        except NoCredentialsError:
            error = denied(self._name, "there are no AWS credentials")
        except BotoCoreError as exc:
            error = unavailable(self._name, type(exc).__name__)
        raise error

    def _error(self, arn: str, code: str, arguments: Mapping[str, Any]) -> SealwrightError:
        if code in _UNWRAP_FAILED:
            return unwrap_failed()
        if code in _DESTROYED:
            return destroyed(self._name, arn)
        if "Recipient" in arguments and code in ("ValidationException", "AccessDeniedException"):
            return _RecipientRefused(code, code=code)
        if code in _DENIED:
            return denied(self._name, code)
        if code == "NotFoundException":
            return key_missing(self._name, arn)
        return unavailable(self._name, code or "no code")


class _RecipientRefused(SealwrightError):
    """Carries AWS's code out of `_ask`."""


def _encryption_context(context: WrapContext) -> dict[str, str]:
    return {
        "epoch": str(context.epoch),
        "kid": context.kid,
        "policy_digest": context.policy_digest.hex(),
        "tenant": context.tenant,
    }


def _bytes(answer: Mapping[str, Any], member: str, name: str) -> bytes:
    value = answer.get(member)
    if not isinstance(value, bytes) or not value:
        raise malformed(name, f"it has no {member}")
    return value
