"""Clients that people use, unchanged."""

import asyncio

import pytest

openai = pytest.importorskip("openai")

HELLO = [{"role": "user", "content": "Say hello."}]


def test_chat(client, server):
    answer = client.chat.completions.create(model="auto", messages=HELLO, max_tokens=8)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.model == server.model
    assert answer._request_id


def test_stream_adds_up_to_the_whole(client):
    ask = dict(model="auto", messages=HELLO, max_tokens=24, temperature=0)
    whole = client.chat.completions.create(**ask)
    text, usage, finish = "", None, None
    for chunk in client.chat.completions.create(**ask, stream=True,
                                                stream_options={"include_usage": True}):
        assert usage is None, "something came after the usage"
        usage = chunk.usage
        for choice in chunk.choices:
            assert finish is None
            text += choice.delta.content or ""
            finish = choice.finish_reason
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_stream_helper(client):
    # The library takes a cut answer for an error, so the answer is stopped: each has one of these soon.
    with client.chat.completions.stream(model="auto", messages=HELLO, max_tokens=200,
                                        stop=["e", "a", " "]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "chunk" in kinds
    assert final.choices[0].finish_reason == "stop"


def test_several_choices(client):
    answer = client.chat.completions.create(model="auto", messages=HELLO, max_tokens=8, n=3,
                                            temperature=1.5, seed=7)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    again = client.chat.completions.create(model="auto", messages=HELLO, max_tokens=8, n=3,
                                           temperature=1.5, seed=7)
    assert [c.message.content for c in answer.choices] == \
        [c.message.content for c in again.choices]


def test_seeds_matter(client):
    texts = {client.chat.completions.create(model="auto", messages=HELLO, max_tokens=16,
                                            temperature=1.5, seed=s).choices[0].message.content
             for s in range(4)}
    assert len(texts) > 1


def test_completion_and_logprobs(client):
    answer = client.completions.create(model="auto", prompt="In the beginning", max_tokens=5,
                                       logprobs=2, temperature=0)
    lp = answer.choices[0].logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset)
    assert all(len(top) == 2 for top in lp.top_logprobs)
    # Greedy: the chosen token is the best one.
    for token, chosen, top in zip(lp.tokens, lp.token_logprobs, lp.top_logprobs):
        assert max(top.values()) == pytest.approx(chosen, abs=1e-4), token


def test_logit_bias_bans_a_token(client, server):
    ask = dict(model="auto", prompt="In the beginning", max_tokens=1, temperature=0)
    first = client.completions.create(**ask).choices[0].text
    # Its id, by asking for each candidate: a prompt of one token comes back with echo.
    ids = [i for i in range(3, 512)
           if client.completions.create(model="auto", prompt=[i], max_tokens=1,
                                        extra_body={"echo": True}).choices[0].text.startswith(first)]
    assert ids
    other = client.completions.create(**ask, logit_bias={str(i): -100 for i in ids})
    assert other.choices[0].text != first


def test_errors_have_the_library_s_types(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=HELLO)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="auto", messages=HELLO, temperature=9)
    assert bad.value.param == "temperature"


def test_models(client, server):
    ids = [m.id for m in client.models.list()]
    assert server.model in ids and "auto" in ids
    assert client.models.retrieve(server.model).id == server.model


def test_many_at_once(server):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none",
                                      max_retries=0) as c:
            async def one(i):
                if i % 2:
                    answer = await c.chat.completions.create(
                        model="auto", messages=HELLO, max_tokens=6, temperature=0)
                    return answer.choices[0].message.content
                text = ""
                async for chunk in await c.chat.completions.create(
                        model="auto", messages=HELLO, max_tokens=6, temperature=0, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text
            return await asyncio.gather(*(one(i) for i in range(24)))
    assert len(set(asyncio.run(run()))) == 1
