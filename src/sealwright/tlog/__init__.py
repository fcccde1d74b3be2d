"""Transparency logs in C2SP's formats: write, prove, verify (docs/spec/log.md). No network."""

from sealwright.tlog.checkpoint import Checkpoint, sign_checkpoint
from sealwright.tlog.keys import Cosigner, Signer, VerifierKey
from sealwright.tlog.monitor import VerifiedLog, verify_log
from sealwright.tlog.note import Note
from sealwright.tlog.policy import Cosignature, LogPolicy, VerifiedCheckpoint
from sealwright.tlog.posix import PosixLog, directory_fetch
from sealwright.tlog.proof import LoggedEntry, LogProof
from sealwright.tlog.reader import TileReader
from sealwright.tlog.tiles import Fetch
from sealwright.tlog.writer import LogWriter

__all__ = [
    "Checkpoint",
    "Cosignature",
    "Cosigner",
    "Fetch",
    "LogPolicy",
    "LogProof",
    "LogWriter",
    "LoggedEntry",
    "Note",
    "PosixLog",
    "Signer",
    "TileReader",
    "VerifiedCheckpoint",
    "VerifiedLog",
    "VerifierKey",
    "directory_fetch",
    "sign_checkpoint",
    "verify_log",
]
