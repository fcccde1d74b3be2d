"""Policies for guests of Confidential Containers: init-data takes the place of an enclave config.

Spec: docs/spec/kbs-guest.md, Guest policy.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sealwright.appraisal.binding import ConfigBinding, holds
from sealwright.appraisal.policy import PolicyBase
from sealwright.appraisal.signed import GUEST_POLICY
from sealwright.crypto.document import Digest
from sealwright.errors import AppraisalFailure

# Where the host chooses a register at launch, it chooses the guest's agent policy with it.
_HAVE_REGISTER = ("snp", "tdx", "az_snp_vtpm", "az_tdx_vtpm")


class GuestPolicy(PolicyBase):
    """Which guests get a resource. `digest()` is the policy digest that decisions name."""

    format: Literal["sealwright-guest-policy/v1"] = "sealwright-guest-policy/v1"
    init_data: Annotated[list[Digest], Field(max_length=256)] = Field(default_factory=list)

    _PAYLOAD_TYPE = GUEST_POLICY

    @model_validator(mode="after")
    def _names_register(self) -> Self:
        for name in _HAVE_REGISTER:
            rules = getattr(self.platforms, name)
            if rules is not None and not rules.config_register:
                raise ValueError(f"{name} names no config_register, so its host could choose any init-data")
        return self

    def init_data_refusals(
        self, binding: ConfigBinding, body: str | None, digest: bytes
    ) -> Iterator[AppraisalFailure]:
        """Yield every reason to refuse a guest's init-data.

        Args:
            binding: the register that the rules name, and what it holds.
            body: the text that the guest sent; None: none.
            digest: of `body`, by the algorithm that it names; empty without it.
        """
        if not (binding.register == "" and body is None) and not holds(binding, digest):
            text = (
                "init-data is not what the register holds"
                if digest
                else "there is init-data that was not sent"
            )
            yield AppraisalFailure(text, code="init-data-mismatch")
        if body is not None and not self._lists(body):
            yield AppraisalFailure("the policy does not list this init-data", code="init-data-not-allowed")

    def _lists(self, body: str) -> bool:
        found = hashlib.sha256(body.encode()).digest()
        return any(hmac.compare_digest(found, one) for one in self.init_data)
