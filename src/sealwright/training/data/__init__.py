"""Training data: sealed shards, opened in the memory of attested workers alone. Spec: docs/spec/training-data.md."""

from sealwright.training.data.loader import Batch, Loader
from sealwright.training.data.owner import count_rows, seal_shard
from sealwright.training.data.shard import OpenShard, Released, data_request, open_release, open_shard, opened
from sealwright.training.data.stages import StageRecord, run_stage, table_digest, verify_stages

__all__ = [
    "Batch",
    "Loader",
    "OpenShard",
    "Released",
    "StageRecord",
    "count_rows",
    "data_request",
    "open_release",
    "open_shard",
    "opened",
    "run_stage",
    "seal_shard",
    "table_digest",
    "verify_stages",
]
