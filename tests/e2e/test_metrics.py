"""Every metric of the contract, against what was served; and Triton's own statistics."""

import time

import pytest

from harness.call import Call, ask, ask_error

PROMPT = "Water boils at a lower temperature on a mountain than at sea level because"
OUT = {"return_rewind": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
DECISIONS = ("draft", "verified", "rewound", "shadow")
POLICIES = ("observe", "step", "window", "lossless", "shadow")


@pytest.fixture(scope="module", params=["smollm2", "smollm2_iterative"])
def served(request, server):
    """Scrapes before and after a known set of answers, with the answers."""
    model = request.param
    server.wait_idle(model)
    before, statistics = server.metrics(), server.statistics(model)
    calls = [
        Call(
            server,
            model,
            PROMPT,
            sampling={
                "policy": policy,
                "window": 4,
                "temperature": 0.8,
                "seed": seed,
                "max_tokens": 24,
                "ignore_eos": True,
            },
            stream=seed == 1,
            **OUT,
        )
        for policy in POLICIES
        for seed in (1, 2)
    ]
    answers = [call.wait() for call in calls]
    assert all(answer.error is None for answer in answers)
    server.wait_idle(model)
    return model, before, server.metrics(), answers, statistics, server.statistics(model)


def grown(served, name, **labels):
    model, before, after, *_ = served
    assert after.find(name, model=model, **labels), f"{name}{labels} is missing"
    return after.total(name, model=model, **labels) - before.total(name, model=model, **labels)


def test_token_counters_equal_the_tokens_received(served):
    answers = served[3]
    decisions = [decision for answer in answers for decision in answer.decisions]
    for decision in DECISIONS:
        assert grown(served, "rewind_tokens_total", decision=decision) == decisions.count(decision), decision
    assert sum(grown(served, "rewind_tokens_total", decision=decision) for decision in DECISIONS) == len(answers) * 24


def test_rewind_counters_equal_the_rewinds_received(served):
    total = sum(sum(answer.all("rewinds")) for answer in served[3])
    assert total > 0
    reasons = ("suspect", "not_finite", "mismatch")
    by_reason = {reason: grown(served, "rewind_rewinds_total", reason=reason) for reason in reasons}
    assert sum(by_reason.values()) == grown(served, "rewind_rewinds_total") == total
    assert by_reason["suspect"] > 0 and by_reason["mismatch"] > 0 and by_reason["not_finite"] == 0
    replaced = sum(answer.decisions.count("rewound") for answer in served[3])
    assert grown(served, "rewind_rewound_tokens_total") >= replaced > 0


def test_entropy_histogram(served):
    answers = served[3]
    entropies = [value for answer in answers for value in answer.all("entropy")]
    assert grown(served, "rewind_entropy_nats_count") == len(entropies)
    assert grown(served, "rewind_entropy_nats_sum") == pytest.approx(sum(entropies), rel=1e-4)
    assert grown(served, "rewind_entropy_nats_bucket", le="+Inf") == len(entropies)


def test_thresholds_and_temperature(served):
    model, _, after, answers, *_ = served
    assert after.one("rewind_threshold", model=model) == pytest.approx(answers[-1].all("threshold")[0])
    assert after.one("rewind_thermal_coefficient", model=model) == pytest.approx(
        answers[-1].parameter("thermal_coefficient")
    )
    celsius = after.find("rewind_chip_celsius", model=model)
    # Without a sensor the metric is absent, not zero.
    assert all(0 < value < 130 for _, value in celsius)
    if not celsius:
        assert after.one("rewind_thermal_coefficient", model=model) == 1


def test_passes(served):
    model, _, after, *_ = served
    for kind in ("draft", "full"):
        assert grown(served, "rewind_pass_seconds_count", **{"pass": kind}) > 0
        assert grown(served, "rewind_pass_seconds_sum", **{"pass": kind}) > 0
    assert grown(served, "rewind_active_seconds_total") >= grown(served, "rewind_pass_seconds_sum")
    assert after.one("rewind_batch_rows", model=model) > 0


def test_memory_is_told_by_parts(served):
    model, _, after, *_ = served
    parts = {labels["part"]: value for labels, value in after.find("rewind_memory_bytes", model=model)}
    assert set(parts) == {"draft", "shadow", "shared", "kv", "buffers"}
    # 135 million weights: in 16 bits, and in about 4.5.
    assert 200e6 < parts["shadow"] + parts["shared"] < 300e6
    assert 60e6 < parts["draft"] + parts["shared"] < 130e6
    assert parts["kv"] > 0 and 0 < parts["buffers"] < 200e6


def test_nothing_is_left_over(served):
    model, _, after, *_ = served
    states = after.find("rewind_sequences", model=model)
    assert {labels["state"] for labels, _ in states} >= {"waiting", "prefilling", "drafting", "verifying"}
    assert all(value == 0 for _, value in states)
    assert after.kv(model, "used") == 0
    assert after.kv(model, "free") == after.kv(model, "max") > 0
    assert after.kv(model, "tokens_per") > 0


def test_the_family_that_vllm_has(served):
    answers = served[3]
    prompt = sum(answer.all("num_input_tokens")[0] for answer in answers)
    output = sum(sum(answer.all("num_output_tokens")) for answer in answers)
    assert grown(served, "vllm:prompt_tokens_total") == prompt
    assert grown(served, "vllm:generation_tokens_total") == output
    count = len(answers)
    for name in ("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"):
        assert grown(served, f"{name}_count") == count, name
        assert grown(served, f"{name}_sum") > 0, name
    # One observation for each token after the first.
    assert grown(served, "vllm:time_per_output_token_seconds_count") == output - count


def test_every_sample_is_labelled(served):
    _, _, after, *_ = served
    for name, samples in after.samples.items():
        if name.startswith(("rewind_", "vllm:", "nv_trt_llm_")):
            for labels, _ in samples:
                assert {"model", "version"} <= labels.keys(), (name, labels)


def test_statistics_of_triton(served):
    model, *_, before, after = served
    count = len(served[3])
    assert after.inference_stats.success.count - before.inference_stats.success.count == count
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_count - before.inference_count >= count
    assert after.execution_count > before.execution_count
    if model == "smollm2":
        assert after.inference_stats.fail.count == before.inference_stats.fail.count
        # The time of a request is the whole time of its answer, not that of handing it over.
        spent = (after.inference_stats.success.ns - before.inference_stats.success.ns) / 1e9
        longest = max(answer.responses[-1].at - answer.responses[0].at for answer in served[3])
        assert spent > longest


def test_failures_and_cancellations_are_counted(server):
    model = "smollm2"
    before = server.statistics(model).inference_stats
    ask_error(server, model, PROMPT, sampling={"max_tokens": 0})
    after = server.statistics(model).inference_stats
    assert after.fail.count - before.fail.count == 1
    assert after.success.count == before.success.count
    call = Call(server, model, PROMPT, sampling={"max_tokens": 500, "ignore_eos": True}, stream=True)
    call.wait_for(2)
    call.cancel()
    server.wait_idle(model)
    deadline = time.monotonic() + 2
    while True:
        last = server.statistics(model).inference_stats
        # This server has no count of cancelled requests: they are failures with that reason.
        if last.fail.count - after.fail.count == 1:
            break
        assert time.monotonic() < deadline, f"the cancellation was not counted: {last}"
        time.sleep(0.05)
    assert last.success.count == before.success.count


def test_the_threshold_gauge_follows_a_request(server, model):
    ask(server, model, PROMPT, sampling={"max_tokens": 2, "threshold": 1.25, "temperature": 0})
    server.wait_idle(model)
    assert server.metrics().one("rewind_threshold", model=model) == 1.25
