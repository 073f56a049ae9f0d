"""Between the contract and the engine: shapes by the input's name, and refusals that keep their words."""

from __future__ import annotations

import pytest

from core.errors import EngineError
from core.intake.loading import _of_one_input as single_shape
from store.contract import ErrorCode
from worker.runner.session import describe


def test_a_refusal_of_the_engine_keeps_its_code_its_words_and_its_field():
    error = describe(EngineError("invalid_request", "There is no method 'nope'.", param="/methods/0/type"))
    assert (error.code, error.message, error.param) == (
        ErrorCode.invalid_request,
        "There is no method 'nope'.",
        "/methods/0/type",
    )
    assert not error.retryable


def test_a_shape_may_name_the_input_by_its_right_name_only():
    assert single_shape([3, 32, 32]) == single_shape({"input": [3, 32, 32]}) == (3, 32, 32)
    assert single_shape(None) is None
    for wrong in ({"not_the_input": [3, 32, 32]}, {"input": [3, 32, 32], "mask": [1]}, {}):
        with pytest.raises(EngineError, match="called 'input'") as refused:
            single_shape(wrong)
        assert (refused.value.code, refused.value.param) == ("shape_mismatch", "/input_shape")
