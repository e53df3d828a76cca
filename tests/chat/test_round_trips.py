"""What a model writes comes back exactly, whatever its texts hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat.broken import check_broken
from tests.chat.generated import WRITERS, check_exact, check_joined


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@settings(deadline=None, max_examples=50)
@given(random=st.randoms(use_true_random=False))
def test_answer_of_tags_tokens_and_json_comes_back_exactly(writer, random):
    check_exact(random, writer)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@settings(deadline=None, max_examples=50)
@given(random=st.randoms(use_true_random=False))
def test_broken_output_loses_no_word_and_is_read_alike_however_it_is_fed(writer, random):
    check_broken(random, writer)


@settings(deadline=None, max_examples=50)
@given(random=st.randoms(use_true_random=False))
def test_headers_of_gpt_oss_lose_no_word_where_spaces_or_tokens_are_missing(random):
    check_joined(random, WRITERS["gpt_oss"])
