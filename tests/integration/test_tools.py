"""Functions that a model may call: all forms of tool_choice, whole and streamed, by openai's own client."""

import json

import pytest

jsonschema = pytest.importorskip("jsonschema")
openai = pytest.importorskip("openai")

WEATHER = {"type": "object", "additionalProperties": False,
           "properties": {"city": {"type": "string", "maxLength": 12},
                          "unit": {"type": "string", "enum": ["C", "F"]}},
           "required": ["city", "unit"]}
ADD = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99},
                                        "b": {"$ref": "#/$defs/n"}},
       "required": ["a", "b"], "$defs": {"n": {"type": "integer", "minimum": -9, "maximum": 9}}}
SCHEMAS = {"get_weather": WEATHER, "add": ADD, "now": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather of a city",
                                           "parameters": WEATHER}},
         {"type": "function", "function": {"name": "add", "parameters": ADD}},
         {"type": "function", "function": {"name": "now"}}]
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


def check_calls(calls):
    assert calls
    for call in calls:
        assert call.type == "function" and call.id
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert len({call.id for call in calls}) == len(calls)


def create(client, **more):
    return client.chat.completions.create(**(dict(model="auto", messages=ASK, tools=TOOLS,
                                                  max_tokens=200) | more))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_required_call_has_the_right_shape(client, seed, temperature):
    choice = create(client, tool_choice="required", seed=seed, temperature=temperature).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert len(choice.message.tool_calls) == 1
    check_calls(choice.message.tool_calls)


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_named_call_is_the_named_one(client, name):
    for seed in range(2):
        choice = create(client, tool_choice={"type": "function", "function": {"name": name}}, seed=seed,
                        temperature=1.2).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert [call.function.name for call in choice.message.tool_calls] == [name]
        check_calls(choice.message.tool_calls)


def test_several_calls_only_where_they_are_wanted(client):
    many = create(client, tool_choice="required", parallel_tool_calls=True, temperature=0,
                  max_tokens=120).choices[0]
    assert many.finish_reason in ("tool_calls", "length")
    whole = many.message.tool_calls
    check_calls(whole[:-1] if many.finish_reason == "length" and len(whole) > 1 else whole)
    one = create(client, tool_choice="required", parallel_tool_calls=False, temperature=0).choices[0]
    assert len(one.message.tool_calls) == 1
    # What the first call was does not depend on how many may follow.
    assert one.message.tool_calls[0].function == many.message.tool_calls[0].function


def test_none_and_auto_answer(client):
    message = create(client, tool_choice="none", max_tokens=16).choices[0].message
    assert message.tool_calls is None and isinstance(message.content, str)
    for seed in range(2):
        choice = create(client, seed=seed, temperature=1.0, max_tokens=40).choices[0]
        if choice.finish_reason == "tool_calls":
            check_calls(choice.message.tool_calls)
        else:
            assert choice.message.tool_calls or choice.message.content is not None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_streamed_calls_are_those_of_the_whole(client, choice):
    ask = dict(tool_choice=choice, temperature=0, seed=1)
    whole = create(client, **ask).choices[0]
    calls, finish = {}, None
    for chunk in create(client, stream=True, **ask):
        for c in chunk.choices:
            finish = c.finish_reason or finish
            for piece in c.delta.tool_calls or []:
                call = calls.setdefault(piece.index, {"arguments": "", "names": [], "ids": []})
                call["arguments"] += piece.function.arguments or ""
                if piece.function.name:
                    call["names"].append(piece.function.name)
                if piece.id:
                    call["ids"].append(piece.id)
    assert finish == whole.finish_reason == "tool_calls"
    assert sorted(calls) == list(range(len(whole.message.tool_calls)))
    for i, want in enumerate(whole.message.tool_calls):
        assert calls[i]["names"] == [want.function.name] and len(calls[i]["ids"]) == 1
        assert calls[i]["arguments"] == want.function.arguments


def test_a_conversation_goes_on_after_a_call(client):
    first = create(client, tool_choice="required", temperature=0).choices[0].message
    messages = ASK + [first.model_dump(exclude_none=True),
                      {"role": "tool", "tool_call_id": first.tool_calls[0].id,
                       "content": [{"type": "text", "text": "Sunny, "}, {"type": "text", "text": "21 C"}]}]
    answer = create(client, messages=messages, tool_choice="none", max_tokens=8)
    assert answer.choices[0].message.content is not None
    # Content as one text is the same prompt.
    messages[-1] = messages[-1] | {"content": "Sunny, 21 C"}
    again = create(client, messages=messages, tool_choice="none", max_tokens=8)
    assert again.usage.prompt_tokens == answer.usage.prompt_tokens


def test_several_choices_each_have_their_call(client):
    answer = create(client, tool_choice="required", n=2, temperature=1.2, seed=5)
    ids = set()
    for choice in answer.choices:
        check_calls(choice.message.tool_calls)
        ids |= {call.id for call in choice.message.tool_calls}
    assert len(ids) == sum(len(c.message.tool_calls) for c in answer.choices)


def test_an_answer_form_holds_beside_tools(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}}}
    choice = create(client, response_format=form, temperature=0, max_tokens=200).choices[0]
    if choice.finish_reason == "stop":
        assert set(json.loads(choice.message.content)) == {"ok"}
    elif choice.finish_reason == "tool_calls":
        check_calls(choice.message.tool_calls)


@pytest.mark.parametrize("change, param", [
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": TOOLS * 50}, "tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tool_choice": 3}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"messages": ASK + [{"role": "tool", "content": "5"}]}, "messages[1].tool_call_id"),
    ({"messages": ASK + [{"role": "assistant", "content": None, "tool_calls": 5}]},
     "messages[1].tool_calls"),
    ({"tool_choice": "required", "tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"type": "object", "properties": {"x": {"contains": {}}}}}}]},
     "tools[0].function.parameters.properties.x.contains"),
])
def test_what_is_wrong_is_named(server, change, param):
    body = {"model": "auto", "messages": ASK, "tools": TOOLS, "max_tokens": 4} | change
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 400, answer.body
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"
