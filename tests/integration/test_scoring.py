"""What evaluation harnesses ask: how likely every token of a prompt was, with `echo` and `logprobs`."""

import json
import math
import random

import pytest

from conftest import DATA, TINY, model_path, sse_events

GOLDEN = DATA / "golden" / "smollm2_perplexity.json"
TINY_GOLDEN = DATA / "tiny" / "golden.jsonl"


def score(server, prompt, **more):
    body = {"model": "auto", "prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 0} | more
    answer = server.post("/v1/completions", body)
    assert answer.status == 200, answer.body
    return answer.json


def test_perplexity_of_the_goldens(server):
    """The limits for int8 activations of the goldens' own table."""
    if model_path() == TINY or not GOLDEN.exists():
        pytest.skip("needs SmolLM2 (SWITCHYARD_MODEL) and its goldens")
    golden = json.loads(GOLDEN.read_text())
    answer = score(server, golden["ids"], logprobs=5)
    lp = answer["choices"][0]["logprobs"]
    got = lp["token_logprobs"]
    assert len(got) == len(golden["ids"]) and got[0] is None and lp["top_logprobs"][0] is None
    worst = max(abs(a - b) for a, b in zip(got[1:], golden["per_token_logprob"]))
    perplexity = math.exp(-sum(got[1:]) / (len(got) - 1))
    print(f"perplexity {perplexity:.4f}, golden {golden['perplexity']:.4f}, "
          f"largest difference of a token {worst:.3f}")
    assert abs(perplexity / golden["perplexity"] - 1) < 0.012
    assert worst < 0.8
    for chosen, top in zip(got[1:], lp["top_logprobs"][1:]):
        values = list(top.values())
        assert len(values) <= 5 and values == sorted(values, reverse=True)
        assert chosen <= values[0] + 1e-4
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["choices"][0]["finish_reason"] == "length"


def test_prompt_scores_are_those_of_the_answer(server):
    """An answer's own log-probabilities come back when prompt and answer are scored as one prompt."""
    ask = {"model": "auto", "prompt": [20, 30, 40, 50], "temperature": 0, "logprobs": 3}
    first = server.post("/v1/completions", ask | {"max_tokens": 6, "echo": True}).json
    lp = first["choices"][0]["logprobs"]
    assert len(lp["tokens"]) == 4 + first["usage"]["completion_tokens"]
    assert len(lp["tokens"]) == len(lp["token_logprobs"]) == len(lp["top_logprobs"])
    text = first["choices"][0]["text"]
    again = score(server, text, logprobs=3)["choices"][0]
    assert again["text"] == text
    whole = again["logprobs"]
    if whole["tokens"][-3:] == lp["tokens"][-3:] and len(whole["tokens"]) == len(lp["tokens"]):
        assert whole["token_logprobs"][-3:] == pytest.approx(lp["token_logprobs"][-3:], abs=0.05)


def test_offsets_point_into_the_text(server):
    text = "In the beginning was caf\u00e9 \U0001f600."
    choice = score(server, text, logprobs=20)["choices"][0]
    lp = choice["logprobs"]
    assert choice["text"] == text
    for token, at in zip(lp["tokens"], lp["text_offset"]):
        if token and not token.startswith("bytes:") and at + len(token) <= len(text) and at > 0:
            assert text[at:at + len(token)] == token
    assert all(top is None or 15 < len(top) <= 20 for top in lp["top_logprobs"])


def test_scores_do_not_depend_on_company(server):
    """Many at once, streamed or whole, and one alone give the same numbers."""
    rng = random.Random(5)
    prompts = [[rng.randrange(3, 300) for _ in range(rng.randrange(1, 70))] for _ in range(6)]
    alone = [score(server, p)["choices"][0]["logprobs"]["token_logprobs"] for p in prompts]
    together = score(server, prompts)["choices"]
    for one, many in zip(alone, together):
        assert many["logprobs"]["token_logprobs"][1:] == pytest.approx(one[1:], abs=1e-4)
    body = {"model": "auto", "prompt": prompts[0], "echo": True, "logprobs": 2, "max_tokens": 2,
            "stream": True, "n": 2}
    events = sse_events(server.post("/v1/completions", body).body)
    for index in range(2):
        got = [x for ev in events[:-1] for c in ev["choices"] if c["index"] == index and c["logprobs"]
               for x in c["logprobs"]["token_logprobs"]]
        assert got[0] is None and got[1:len(prompts[0])] == pytest.approx(alone[0][1:], abs=1e-4)


def test_a_prompt_as_long_as_the_context_can_be_scored(start, tmp_path):
    conf = tmp_path / "c.yaml"
    conf.write_text(f"experts:\n  - name: tiny\n    model: {TINY}\n    context: 64\n")
    server = start("--config", conf)
    lp = score(server, [5] * 64)["choices"][0]["logprobs"]
    assert len(lp["token_logprobs"]) == 64
    assert server.post("/v1/completions", {"model": "auto", "prompt": [5] * 64}).status == 400
