"""The loader as a PyTorch IterableDataset. Needs torch, which nothing else here does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sealwright.errors import UnavailableError
from sealwright.training.data.loader import Loader


def iterable_dataset(loader: Loader) -> Any:
    """Return a `torch.utils.data.IterableDataset` that yields the loader's batches as dictionaries of tensors.

    Give it to a `DataLoader` with `batch_size=None` and `num_workers=0`: other processes have no part in the evidence,
    and would get the plaintext through files of the host.

    Raises:
        UnavailableError: `torch-missing`; `loader-workers`, when another process iterates it.
    """
    try:
        import torch
        from torch.utils.data import IterableDataset, get_worker_info
    except ImportError:
        raise UnavailableError(
            "PyTorch is not installed: install torch, or iterate the loader itself",
            code="torch-missing",
            stage="loader",
        ) from None

    class SealedBatches(IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Iterator[dict[str, Any]]:
            if get_worker_info() is not None:
                raise UnavailableError(
                    "sealed data is read in the attested process alone: num_workers=0",
                    code="loader-workers",
                    stage="loader",
                )
            for batch in loader:
                yield {
                    name: value.tolist() if value.dtype.hasobject else torch.from_numpy(value)
                    for name, value in batch.items()
                }

    return SealedBatches()
