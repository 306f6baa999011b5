"""The 69 requests of tests/data/openai: status, schema, error fields and checks."""

import json
import re

import pytest
from conftest import DATA, Server, model_path, sse_events

jsonschema = pytest.importorskip("jsonschema")

FOLDER = DATA / "openai"
CASES = [json.loads(line) for line in (FOLDER / "requests.jsonl").read_text().splitlines()]
SCHEMAS = {p.name.split(".")[0]: json.loads(p.read_text())
           for p in (FOLDER / "schemas").glob("*.schema.json")}
ERROR_TYPES = {401: {"authentication_error", "invalid_request_error"},
               404: {"invalid_request_error", "not_found_error"}}


def validate(name, value):
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(value)


def fill(value, model):
    """$MODEL, $EMBED and $REPEAT:U:N."""
    if isinstance(value, dict):
        return {k: fill(v, model) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, model) for v in value]
    if not isinstance(value, str):
        return value
    value = value.replace("$MODEL", model).replace("$EMBED", model)
    found = re.fullmatch(r"\$REPEAT:(.*):(\d+)", value, re.S)
    return found[1] * int(found[2]) if found else value


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("keyed"), "--model", model_path(), key="sk-test",
               SWITCHYARD_SERVER_API_KEYS="sk-test")
    yield s
    s.stop()


def ask(server, case, model):
    body = case.get("body")
    if "raw_body" in case:
        body = fill(case["raw_body"], model).encode()
    elif body is not None:
        body = fill(body, model)
    return server.ask(case["method"], fill(case["path"], model), body, case.get("headers"))


def check_error(case, reply):
    validate("error", reply.json)
    wanted, error = case["error"], reply.error
    assert error["type"] in ERROR_TYPES.get(reply.status, {wanted["type"]}), error
    if wanted["param"]:
        given = (error["param"] or "").replace("[", ".").replace("]", "")
        path = wanted["param"].replace("[", ".").replace("]", "")
        assert given and (given == path or path.startswith(given)), error


def stream_text(events):
    return "".join(c["delta"].get("content") or "" for e in events if e != "[DONE]"
                   for c in e["choices"])


def check_stream(case, reply):
    events = sse_events(reply.body)
    chunks = events[:-1]
    assert events[-1] == "[DONE]"
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    for chunk in chunks:
        validate(case["schema"], chunk)
    assert len({c["id"] for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in c["delta"] for e in chunks[1:] for c in e["choices"])
    finishes = [c for e in chunks for c in e["choices"] if c["finish_reason"]]
    assert len(finishes) == 1 and not finishes[0]["delta"].get("content")
    if "last_chunk_choices_empty_with_usage" in case["check"]:
        usage = chunks[-1]["usage"]
        assert chunks[-1]["choices"] == []
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert all(c.get("usage") is None for c in chunks[:-1])
    else:
        assert all("usage" not in c for c in chunks)
    return events


def check_word(word, case, reply, again):
    """One word of `check` for a whole answer."""
    body = reply.json
    name, _, value = word.partition(":")
    if word == "content_is_string":
        assert isinstance(reply.text, str)
    elif word == "finish_reason=length":
        assert body["choices"][0]["finish_reason"] == "length"
    elif word == "completion_tokens=1":
        assert body["usage"]["completion_tokens"] == 1
    elif word == "completion_tokens<=2":
        assert body["usage"]["completion_tokens"] <= 2
    elif word == "prompt_tokens=3":
        assert body["usage"]["prompt_tokens"] == 3
    elif word == "deterministic":
        assert again().text == reply.text
    elif word == "choices=2":
        assert len(body["choices"]) == 2
    elif word == "indices=0,1":
        assert [c["index"] for c in body["choices"]] == [0, 1]
    elif name == "content_excludes":
        assert value not in reply.text
    elif word == "logprobs_len=completion_tokens":
        entries = len(body["choices"][0]["logprobs"]["content"])
        assert entries in (body["usage"]["completion_tokens"],
                           body["usage"]["completion_tokens"] - 1)
    elif name.startswith("top_logprobs_len"):
        count = int(name.partition("=")[2])
        assert all(len(e["top_logprobs"]) == count
                   for e in body["choices"][0]["logprobs"]["content"])
    elif word == "top_logprobs_sorted":
        for entry in body["choices"][0]["logprobs"]["content"]:
            values = [t["logprob"] for t in entry["top_logprobs"]]
            assert values == sorted(values, reverse=True)
    elif word == "no_tool_calls":
        assert "tool_calls" not in body["choices"][0]["message"]
    elif word == "content_is_json_unless_length":
        if body["choices"][0]["finish_reason"] != "length":
            json.loads(reply.text)
    elif word == "total_tokens_sum":
        pass  # always checked
    else:
        raise AssertionError(f"unknown check {word}")


def check_whole(case, reply, server, model):
    body = reply.json
    validate(case["schema"], body)
    if "usage" in body:
        usage = body["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    for word in case.get("check", []):
        if word == "contains_model":
            assert model in [m["id"] for m in body["data"]]
        elif word.startswith("same_prompt_tokens_as:"):
            other = server.chat(word.partition(":")[2], model=model).json
            assert body["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]
        else:
            check_word(word, case, reply, lambda: ask(server, case, model))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_request(case, request):
    keys = case["id"].startswith("err_auth")
    server = request.getfixturevalue("keyed" if keys else "server")
    model = server.model
    reply = ask(server, case, model)
    assert reply.status in case["status"], reply.body
    if reply.status != 200:
        check_error(case, reply)
    elif case["schema"] == "chat_completion_chunk":
        events = check_stream(case, reply)
        if any(w.startswith("concatenated_content_equals") for w in case["check"]):
            # A seed means nothing at temperature 0.
            whole = next(c for c in CASES if c["id"] == "chat_temperature_0")
            assert stream_text(events[:-1]) == ask(server, whole, model).text
    else:
        check_whole(case, reply, server, model)


def test_examples_fit_their_schemas():
    """The validator itself: it must take what is right and refuse what is not."""
    for line in (FOLDER / "examples.jsonl").read_text().splitlines():
        example = json.loads(line)
        validate(example["schema"], example["body"])
    with pytest.raises(jsonschema.ValidationError):
        validate("chat_completion", {"id": "x"})
