"""LiteLLM against the running server: answers, streams, calls, and its own ideas of errors."""

import os

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no look at the network
litellm = pytest.importorskip("litellm")

ASK = [{"role": "user", "content": "Say hello."}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}


def complete(server, **more):
    return litellm.completion(**(dict(model="openai/auto", api_base=server.url + "/v1", api_key="none",
                                      messages=ASK, max_tokens=8, num_retries=0) | more))


def test_whole_and_streamed(server):
    whole = complete(server, temperature=0)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(complete(server, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    built = litellm.stream_chunk_builder(chunks, messages=ASK)
    assert built.choices[0].message.content == text
    assert built.usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_calls(server, stream):
    answer = complete(server, tools=[TOOL], tool_choice="required", max_tokens=40, stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=ASK)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [c.function.name for c in answer.choices[0].message.tool_calls] == ["add"]


def test_text_completion(server):
    answer = litellm.text_completion(model="text-completion-openai/auto", prompt="In the beginning",
                                     api_base=server.url + "/v1", api_key="none", max_tokens=4)
    assert answer.choices[0].text


def test_errors(server):
    with pytest.raises(litellm.BadRequestError):
        complete(server, temperature=1.0, top_p=7)
    with pytest.raises(litellm.NotFoundError):
        complete(server, model="openai/nobody")
