"""The loader under PyTorch, where it is installed."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from tests.training.data.test_loader import Rows, loader

from sealwright.errors import UnavailableError
from sealwright.training.data.torch import iterable_dataset


def test_batches_become_tensors() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    made = loader({"a": Rows(5, 6)})
    wanted = [batch["x"].tolist() for batch in loader({"a": Rows(5, 6)})]
    batches = list(DataLoader(iterable_dataset(made), batch_size=None, num_workers=0))
    assert [batch["x"].tolist() for batch in batches] == wanted
    assert all(isinstance(batch["x"], torch.Tensor) for batch in batches)


def test_other_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: object())
    with pytest.raises(UnavailableError) as caught:
        next(iter(iterable_dataset(loader({"a": Rows(3)}))))
    assert caught.value.code == "loader-workers"


def test_without_torch_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UnavailableError) as caught:
        iterable_dataset(loader({"a": Rows(3)}))
    assert caught.value.code == "torch-missing"
