"""Evidence of a TPM 2.0: a client in pure Python for a device, or for a software TPM over a socket."""

from sealwright.attester.tpm.attester import TpmAttester
from sealwright.attester.tpm.commands import Tpm
from sealwright.attester.tpm.enrol import activate, enrol_request
from sealwright.attester.tpm.transport import connect

__all__ = ["Tpm", "TpmAttester", "activate", "connect", "enrol_request"]
