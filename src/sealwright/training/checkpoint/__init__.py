"""Checkpoints: sealed, signed inside a TEE, chained to their base and to the owners of their data. Spec: docs/spec/checkpoint.md."""

from sealwright.training.checkpoint.chain import VerifiedChain, VerifiedCheckpoint, verify_chain
from sealwright.training.checkpoint.environment import Environment, differences, this_environment
from sealwright.training.checkpoint.folder import CheckpointFolder
from sealwright.training.checkpoint.trust import TrainingTrust
from sealwright.training.checkpoint.versions import Newest, NewestFile, check_newest
from sealwright.training.checkpoint.weights import Resumed, open_weights, resume
from sealwright.training.checkpoint.write import CheckpointKeys, Draft, Written, write_checkpoint

__all__ = [
    "CheckpointFolder",
    "CheckpointKeys",
    "Draft",
    "Environment",
    "Newest",
    "NewestFile",
    "Resumed",
    "TrainingTrust",
    "VerifiedChain",
    "VerifiedCheckpoint",
    "Written",
    "check_newest",
    "differences",
    "open_weights",
    "resume",
    "this_environment",
    "verify_chain",
    "write_checkpoint",
]
