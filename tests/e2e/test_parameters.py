"""The same settings through tensors, request parameters and JSON, and that each has its effect."""

import pytest

from harness.call import ask, ask_error
from harness.repository import INFLIGHT

PROMPT = "Once upon a time, in a village between two rivers,"
OUT = {"exclude_input_in_output": True, "return_rewind": True}


def test_three_ways_to_say_the_same(server, model):
    by_json = ask(server, model, PROMPT, sampling={"max_tokens": 9, "temperature": 0.7, "seed": 5}, **OUT)
    assert len(by_json.ids) == 9
    strings = ask(server, model, PROMPT, sampling={"max_tokens": "9", "temperature": "0.7", "seed": "5"}, **OUT)
    numbers = ask(server, model, PROMPT, parameters={"max_tokens": 9, "temperature": 0.7, "seed": 5}, **OUT)
    texts = ask(server, model, PROMPT, parameters={"max_tokens": "9", "temperature": "0.7", "seed": "5"}, **OUT)
    mixed = ask(server, model, PROMPT, max_tokens=9, sampling={"temperature": 0.7}, parameters={"seed": 5}, **OUT)
    flags = {name: True for name in OUT}
    all_parameters = {"max_tokens": 9, "temperature": 0.7, "seed": 5, **flags}
    only_parameters = ask(server, model, PROMPT, parameters=all_parameters)
    for other in (strings, numbers, texts, mixed, only_parameters):
        assert other.trace == by_json.trace


def test_http_fields_are_parameters(server, model):
    settings = {"max_tokens": 9, "temperature": 0.7, "seed": 5}
    expected = ask(server, model, PROMPT, sampling=settings, exclude_input_in_output=True).text
    for fields in (
        settings,
        {"parameters": settings},
        {"sampling_parameters": '{"max_tokens":"9","temperature":0.7,"seed":5}'},
    ):
        answer = server.generate(model, text_input=PROMPT, exclude_input_in_output=True, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text_output"] == expected


def test_seeds(server, model):
    def sampled(**more):
        return ask(server, model, PROMPT, sampling={"max_tokens": 8, "temperature": 1, **more}, **OUT)

    assert sampled(seed=1).trace == sampled(seed=1).trace
    assert sampled(seed=1).ids != sampled(seed=2).ids
    assert sampled(seed=2**64 - 1).ids == sampled(seed=str(2**64 - 1)).ids


def test_a_drawn_seed_is_returned_and_replays(server, model):
    sampling = {"max_tokens": 16, "temperature": 1}
    first = ask(server, model, PROMPT, sampling=sampling, **OUT)
    other = ask(server, model, PROMPT, sampling=sampling, **OUT)
    seed = first.parameter("seed")
    assert seed is not None and seed != other.parameter("seed")
    threshold = first.all("threshold")[0]
    again = ask(server, model, PROMPT, sampling={**sampling, "seed": seed, "threshold": threshold}, **OUT)
    assert again.trace == first.trace
    assert again.parameter("seed") == seed


def test_what_a_request_was_judged_by_is_returned(server, model):
    answer = ask(server, model, PROMPT, sampling={"max_tokens": 2, "temperature": 0}, **OUT)
    assert answer.parameter("thermal_coefficient") >= 1
    assert answer.parameter("seed") is not None
    assert len(set(answer.all("threshold"))) == 1


def test_sampling_keys_have_their_effect(server, model):
    def sampled(**keys):
        keys = {"max_tokens": 8, "temperature": 0.9, "seed": 3, "ignore_eos": True, **keys}
        return ask(server, model, PROMPT, sampling=keys, **OUT)

    greedy = sampled(temperature=0).ids
    assert sampled().ids != greedy
    for same_as_greedy in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert sampled(**same_as_greedy).ids == greedy, same_as_greedy
    neutral = {"top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "n": 1}
    assert sampled(**neutral).ids == sampled().ids
    forced = sampled(logit_bias={"504": 100}).ids
    assert forced == [504] * 8


def test_penalties_end_a_repetition(server, model):
    prompt = "Les nombres de un à dix : un, deux, trois, quatre, cinq, six,"
    sampling = {"max_tokens": 16, "temperature": 0, "policy": "shadow", "ignore_eos": True}
    plain = ask(server, model, prompt, sampling=sampling, **OUT).ids
    assert len(set(plain)) < 12, "it repeats itself"
    for penalty in ({"repetition_penalty": 2}, {"presence_penalty": 2}, {"frequency_penalty": 2}):
        assert ask(server, model, prompt, sampling={**sampling, **penalty}, **OUT).ids != plain, penalty


def test_known_keys_of_vllm_at_their_defaults_are_ignored(server, model):
    plain = ask(server, model, PROMPT, sampling={"max_tokens": 4, "temperature": 0}).text
    inert = {"best_of": 1, "use_beam_search": False, "skip_special_tokens": True, "length_penalty": 1.0}
    assert ask(server, model, PROMPT, sampling={"max_tokens": 4, "temperature": 0, **inert}).text == plain
    error = ask_error(server, model, PROMPT, sampling={"use_beam_search": True})
    assert "use_beam_search" in error and "true" in error and "false" in error


def test_stop_token_ids_and_min_tokens(server, model):
    options = {"return_finish_reason": True, **OUT}
    free = ask(server, model, PROMPT, sampling={"max_tokens": 16, "temperature": 0, "policy": "shadow"}, **options)
    stop = free.ids[5]
    first = free.ids.index(stop)
    sampling = {"max_tokens": 16, "temperature": 0, "policy": "shadow", "stop_token_ids": [stop]}
    stopped = ask(server, model, PROMPT, sampling=sampling, **options)
    assert stopped.finish_reason == "stop"
    assert stopped.ids[:first] == free.ids[:first] and len(stopped.ids) <= first + 1
    assert free.text.startswith(stopped.text)
    longer = ask(server, model, PROMPT, sampling={**sampling, "min_tokens": 12}, **options)
    assert len(longer.ids) >= 12
    assert stop not in longer.ids[:12]


def test_end_of_sequence_and_ignore_eos(server, model):
    question = "What is 2 + 2?"
    sampling = {"max_tokens": 24, "temperature": 0, "policy": "shadow", "chat": True}
    options = {"return_finish_reason": True, **OUT}
    ended = ask(server, model, question, sampling=sampling, **options)
    assert ended.finish_reason == "stop" and len(ended.ids) < 24
    ignored = ask(server, model, question, sampling={**sampling, "ignore_eos": True}, **options)
    assert ignored.finish_reason == "length" and len(ignored.ids) == 24
    assert ignored.text.startswith(ended.text)


@pytest.mark.parametrize(
    ("policy", "decisions"),
    [
        ("off", {"draft"}),
        ("observe", {"draft"}),
        ("step", {"draft", "verified", "rewound"}),
        ("window", {"draft", "verified", "rewound"}),
        ("lossless", {"verified", "rewound"}),
        ("shadow", {"shadow"}),
    ],
)
def test_policies_can_be_chosen_per_request(server, policy, decisions):
    sampling = {"max_tokens": 12, "temperature": 0, "policy": policy, "ignore_eos": True}
    answer = ask(server, INFLIGHT, PROMPT, sampling=sampling, **OUT)
    assert len(answer.ids) == 12 and set(answer.decisions) <= decisions


def test_a_window_of_any_size_gives_the_same_lossless_answer(server, model):
    answers = [
        ask(
            server,
            model,
            PROMPT,
            sampling={"max_tokens": 14, "temperature": 0, "policy": "lossless", "window": n},
            **OUT,
        )
        for n in (1, 3, 64)
    ]
    assert len({tuple(answer.ids) for answer in answers}) == 1
