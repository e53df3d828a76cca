"""What the tests of training have in common."""

from __future__ import annotations

import pytest

from macmoe.tuning.metrics import Metrics


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no losses: a picture at each saving takes longer than the tiny models learn."""
    monkeypatch.setattr(Metrics, "draw", lambda _: None)
