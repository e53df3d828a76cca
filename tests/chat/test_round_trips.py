"""What a model writes comes back exactly, whatever its texts hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat.generated import WRITERS, check_exact


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@settings(deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_answer_of_tags_tokens_and_json_comes_back_exactly(writer, random):
    check_exact(random, writer)
