"""The table of a result says what recovery reached, with labels or without."""

import io

from pennyweight.tables import result_table
from rich.console import Console

RESULT = {"baseline": {"params": 100}, "compressed": {"params": 60}, "constraints": []}


def shown(**fields) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(result_table({**RESULT, **fields}))
    return out.getvalue()


def test_without_labels_it_says_how_far_the_outputs_are_from_the_originals():
    errors = {"pruned": 0.99467, "least_squares_refit": 0.81, "fine_tuning": 0.70123}
    text = shown(recovery={"method": "fine_tuning", "output_error": errors})
    assert "output error on held-out images: 0.9947 as pruned, 0.7012 after fine tuning\n" in text


def test_what_recovery_could_not_improve_is_said_as_it_is():
    text = shown(recovery={"method": "none", "output_error": {"pruned": 0.25, "least_squares_refit": 0.3}})
    assert "output error on held-out images: 0.25 as pruned\n" in text


def test_where_nothing_was_compared_nothing_is_said_of_it():
    for recovery in (None, {"method": "none"}, {"method": "fine_tuning", "validation_accuracy": {"pruned": 0.1}}):
        assert "output error" not in shown(recovery=recovery)
