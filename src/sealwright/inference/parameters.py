"""What an engine process is started with: numbers of the enclave config, nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from sealwright.protocol.enclave_config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParameters:
    """Parameters of one engine process."""

    context_tokens: int  # of one request: prompt and answer together
    slots: int  # requests that run at the same time
    threads: int

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """Return the parameters that the enclave config fixes."""
        return cls(context_tokens=config.context_tokens, slots=config.slots, threads=config.threads)

    def to_json(self) -> dict[str, int]:
        """Return plain JSON values."""
        return asdict(self)
