"""What a lossless answer is compared by."""

OUT = {"return_rewind": True, "return_finish_reason": True, "exclude_input_in_output": True}
"""Outputs that the comparison needs."""

SAMPLINGS = ({"temperature": 0}, {"temperature": 0.8, "seed": 1234})


def essence(answer):
    """What must not differ: ids, text and finish reason."""
    assert answer.error is None, answer.error
    return answer.ids, answer.text, answer.finish_reason
