"""/tokenize, /detokenize, /apply-template; keys that may use some experts; web pages of other origins."""

import pytest

from conftest import DATA, TINY, sse_events

ASK = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("text", ["", "Hello, world!", "caf\u00e9 \U0001f600\n\n  x", "a\u0000b"])
def test_tokens_come_back_as_the_text(server, text):
    ids = server.post("/tokenize", {"content": text}).json["tokens"]
    answer = server.post("/detokenize", {"tokens": ids})
    assert answer.status == 200
    # A vocabulary may put a blank before the first word.
    assert answer.json["content"].removeprefix(" ") == text.removeprefix(" ")


def test_pieces_add_up(server):
    text = "na\u00efve \U0001f9d1\u200d\U0001f680 text"
    answer = server.post("/tokenize", {"content": text, "with_pieces": True}).json
    parts = b"".join(bytes(t["piece"]) if isinstance(t["piece"], list) else t["piece"].encode()
                     for t in answer["tokens"])
    assert parts.decode().removeprefix(" ") == text
    assert answer["count"] == len(answer["tokens"])


def test_a_chat_is_tokenised_as_it_would_be_run(server):
    ids = server.post("/tokenize", ASK).json
    run = server.post("/v1/chat/completions", ASK | {"model": "auto", "max_tokens": 1}).json
    assert ids["count"] == run["usage"]["prompt_tokens"]
    prompt = server.post("/apply-template", ASK).json["prompt"]
    again = server.post("/tokenize", {"prompt": prompt, "model": ids["model"]}).json
    assert again["tokens"][-ids["count"]:] == ids["tokens"]


def test_special_tokens_are_read_or_not(server):
    prompt = server.post("/apply-template", ASK).json["prompt"]
    as_special = server.post("/tokenize", {"content": prompt}).json["count"]
    as_text = server.post("/tokenize", {"content": prompt, "parse_special": False}).json["count"]
    assert as_special <= as_text


def test_tools_are_in_the_template(server):
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    prompt = server.post("/apply-template", ASK | {"tools": [tool], "tool_choice": "required"}).json["prompt"]
    assert prompt.count("look_up") >= 2 and prompt.endswith("\"arguments\":")


@pytest.mark.parametrize("path, body, param", [
    ("/tokenize", {}, "content"),
    ("/tokenize", {"content": 5}, "content"),
    ("/tokenize", {"messages": "x"}, "messages"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": [10 ** 9]}, "tokens"),
    ("/apply-template", {}, "messages"),
])
def test_what_is_wrong_is_named(server, path, body, param):
    answer = server.post(path, body)
    assert answer.status == 400 and answer.error["param"] == param


def test_an_unknown_model_and_a_wrong_method(server):
    assert server.post("/tokenize", {"content": "a", "model": "nobody"}).status == 404
    assert server.get("/tokenize").status == 405


def test_keys_open_what_they_may(start, tmp_path):
    conf = tmp_path / "c.yaml"
    conf.write_text(f"""
server:
  api_keys: [all, one]
  cors_origins: [https://a.example]
experts:
  - name: open
    model: {TINY}
  - name: closed
    model: {DATA / 'tiny' / 'tiny-qwen3-q8_0.gguf'}
    keys: [all]
""")
    server = start("--config", conf, key="all")
    one = {"Authorization": "Bearer one"}
    chat = ASK | {"model": "closed", "max_tokens": 1}
    assert server.post("/v1/chat/completions", chat).status == 200
    for path, body in [("/v1/chat/completions", chat), ("/tokenize", {"model": "closed", "content": "a"}),
                       ("/v1/completions", {"model": "closed", "prompt": "a", "max_tokens": 1})]:
        refused = server.post(path, body, headers=one)
        assert refused.status == 403, path
        assert refused.error["code"] == "permission_error" and refused.error["type"] == "permission_error"
    assert server.post("/v1/chat/completions", chat | {"model": "open"}, headers=one).status == 200
    assert server.post("/v1/chat/completions", chat | {"model": "auto"}, headers=one).status == 200
    for wrong in ({"Authorization": None}, {"Authorization": "Bearer al"}):
        answer = server.post("/v1/chat/completions", chat, headers=wrong)
        assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    # A preflight carries no key.
    pre = server.ask("OPTIONS", "/v1/chat/completions", headers={
        "Authorization": None, "Origin": "https://a.example", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os"})
    assert pre.status == 204
    assert pre.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "x-stainless-os" in pre.headers["Access-Control-Allow-Headers"]
    other = server.ask("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://b.example"})
    assert other.headers["Access-Control-Allow-Origin"] is None


def test_every_answer_says_whose_it_is(server):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for body in (ASK | {"model": "auto", "max_tokens": 1}, ASK | {"model": "nobody"},
                 ASK | {"model": "auto", "max_tokens": 1, "stream": True}):
        answer = server.post("/v1/chat/completions", body,
                             headers={"x-request-id": "mine-1", "traceparent": trace})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["traceparent"] == trace
    assert server.post("/v1/chat/completions", ASK).headers["x-request-id"]


def test_fields_of_llama_cpp_do_no_harm(server):
    body = ASK | {"model": "auto", "max_tokens": 4, "temperature": 0}
    plain = server.post("/v1/chat/completions", body).json
    more = server.post("/v1/chat/completions", body | {
        "id_slot": 3, "cache_prompt": True, "n_keep": 0, "samplers": ["top_k"], "return_progress": False,
        "reasoning_format": "none", "lora": [], "t_max_predict_ms": 0}).json
    assert more["choices"][0]["message"] == plain["choices"][0]["message"]
    streamed = sse_events(server.post("/v1/chat/completions",
                                      body | {"id_slot": -1, "cache_prompt": False, "stream": True}).body)
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in streamed[:-1]) == \
        plain["choices"][0]["message"]["content"]
