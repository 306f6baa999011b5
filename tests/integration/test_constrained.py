"""Answers that must have a form: every finished one is valid, with jsonschema as the judge."""

import json
import os
import re

import pytest

jsonschema = pytest.importorskip("jsonschema")

PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
                                           "age": {"type": "integer", "minimum": 0, "maximum": 120}},
          "required": ["name", "age"], "additionalProperties": False}
# Bounded where they can be, so that also a model that talks nonsense comes to an end.
SCHEMAS = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "byte": {"type": "integer", "minimum": 0, "maximum": 255},
    "negative": {"type": "integer", "minimum": -1000, "exclusiveMaximum": -17},
    "above": {"type": "integer", "minimum": 37},
    "below": {"type": "integer", "maximum": 12},
    "open": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
    "share": {"type": "number", "minimum": 0, "maximum": 1},
    "decimals": {"type": "number", "minimum": -2.75, "exclusiveMaximum": 31.5},
    "positive": {"type": "number", "exclusiveMinimum": 0},
    "large": {"type": "integer", "minimum": 1234567890123456, "maximum": 1234567891123456},
    "short": {"type": "string", "maxLength": 8},
    "exactly": {"type": "string", "minLength": 5, "maxLength": 5},
    "names": {"enum": ["red", "green", "blue \"quoted\"", "gr\u00fcn", 7, None, {"a": [1, 2]}]},
    "typed_enum": {"type": "string", "enum": ["a", "ab", "abc", 4]},
    "const": {"const": {"kind": "x", "n": 1.5}},
    "list_of_types": {"type": ["integer", "null", "boolean"]},
    "person": PERSON,
    "optional": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"},
                                                  "c": {"type": "null"}}},
    "one_required": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"},
                                                      "c": {"type": "boolean"}}, "required": ["b"]},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "named_and_map": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"],
                      "additionalProperties": {"type": "boolean"}},
    "required_only": {"type": "object", "required": ["k"], "additionalProperties": {"type": "boolean"}},
    "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"enum": ["x", "y"]}], "items": False,
              "minItems": 2},
    "tuple_and_more": {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"},
                       "maxItems": 5},
    "old_tuple": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
                  "items": [{"type": "integer"}, {"type": "null"}]},
    "any_of": {"anyOf": [{"type": "integer"}, PERSON, {"type": "array", "items": {"type": "null"}}]},
    "any_with_rest": {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
                      "anyOf": [{"required": ["x"]}, {"required": ["y"]}]},
    "one_of": {"oneOf": [{"type": "null"}, {"type": "string", "maxLength": 4}]},
    "all_of": {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                         {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}]},
    "all_of_numbers": {"allOf": [{"type": ["integer", "string"]}, {"type": "number", "minimum": 3},
                                 {"maximum": 99}]},
    "ref": {"$ref": "#/$defs/p", "$defs": {"p": PERSON}},
    "ref_with_rest": {"$ref": "#/$defs/n", "minimum": 5, "$defs": {"n": {"type": "integer", "maximum": 9}}},
    "linked": {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
        "v": {"type": "integer", "minimum": 0, "maximum": 9},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}, "required": ["v", "next"],
        "additionalProperties": False}}},
    "tree": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
    "pattern": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}(-[0-9]{2})?$"},
    "pattern_open": {"type": "string", "pattern": "\\d\\.\\d"},
    "pattern_either": {"type": "string", "pattern": "^(?:cat|dog)s?$|^[^a-z\"\\\\]{3}$"},
    "date": {"type": "string", "format": "date"},
    "date_time": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "uuid": {"type": "string", "format": "uuid"},
    "email": {"type": "string", "format": "email"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "annotations": {"title": "t", "description": "d", "default": 1, "examples": [2], "type": "integer",
                    "x-note": "n"},
    "anything": {},
}
# Formats that jsonschema checks without further packages; the others are matched here.
SPELLED = {"time": r"\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
           "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"}
PLAIN = "root ::= line{1,3}\nline ::= \"- \" [a-z]{1,5} (\", \" [a-z]{1,5}){0,2} \"\\n\""


def wanted(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def judge(schema, text):
    value = json.loads(text)
    cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    cls(schema, format_checker=cls.FORMAT_CHECKER).validate(value)
    pattern = SPELLED.get(schema.get("format")) if isinstance(schema, dict) else None
    assert pattern is None or re.fullmatch(pattern, value), value
    return value


def finished(server, how, **more):
    """The choices that came to their end; the others were cut by the limit."""
    body = {"temperature": 1, "max_tokens": 160, "n": 6} | how | more
    reply = server.chat("Give an answer.", **body)
    assert reply.status == 200, reply.body
    ends = {c["finish_reason"] for c in reply.json["choices"]}
    assert ends <= {"stop", "length"}
    return [c["message"]["content"] for c in reply.json["choices"] if c["finish_reason"] == "stop"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid(server, name):
    schema, done = SCHEMAS[name], []
    for seed in range(1 if os.environ.get("SWITCHYARD_MODEL") else 3):
        done += finished(server, {"response_format": wanted(schema)}, seed=seed * 100)
    for text in done:
        judge(schema, text)
    # What cannot go on for ever must have come to an end at least once.
    assert done or name in ("anything", "tree", "map", "pattern_open", "linked")


def test_greedy_answers_are_valid(server):
    for name in ("person", "names", "items", "share"):
        for text in finished(server, {"response_format": wanted(SCHEMAS[name])}, temperature=0, n=1):
            judge(SCHEMAS[name], text)


def test_json_object_is_an_object(server):
    done = finished(server, {"response_format": {"type": "json_object"}}, n=8, max_tokens=200, seed=1)
    assert all(isinstance(json.loads(text), dict) for text in done)


def test_cut_answers_are_beginnings(server):
    reply = server.chat(response_format=wanted(PERSON), max_tokens=3, seed=4)
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert re.match(r'\{[ \n]?"?', reply.text)


def test_grammar_and_json_schema_fields(server):
    for text in finished(server, {"grammar": PLAIN}, seed=7):
        assert re.fullmatch(r"(- [a-z]{1,5}(, [a-z]{1,5}){0,2}\n){1,3}", text), text
    for text in finished(server, {"json_schema": PERSON}, seed=8):
        judge(PERSON, text)


def test_settings_do_not_loosen_the_form(server):
    for more in ({"ignore_eos": True}, {"min_tokens": 50}, {"logit_bias": {"5": 100}}, {"top_k": 1},
                 {"repetition_penalty": 1.9}, {"top_p": 0.1, "min_p": 0.5}, {"typical_p": 0.2},
                 {"logprobs": True, "top_logprobs": 3}):
        for text in finished(server, {"response_format": wanted(PERSON)}, seed=3, n=2, **more):
            judge(PERSON, text)


def test_constrained_and_free_answers_share_a_batch(server):
    free = server.chat("Go on.", temperature=0, max_tokens=12).text
    for text in finished(server, {"response_format": wanted(PERSON)}, n=4, seed=11):
        judge(PERSON, text)
    assert server.chat("Go on.", temperature=0, max_tokens=12).text == free


@pytest.mark.parametrize("field, param", [
    ({"response_format": wanted({"properties": {"a": {"not": {}}}})},
     "response_format.json_schema.schema.properties.a.not"),
    ({"response_format": wanted({"$ref": "#/$defs/x"})}, "response_format.json_schema.schema.$ref"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"grammar": "root ::= root"}, "grammar"),
    ({"grammar": PLAIN, "json_schema": {}}, "grammar"),
])
def test_what_cannot_be_done_is_named(server, field, param):
    reply = server.chat(**field)
    assert reply.status == 400 and reply.error["param"] == param, reply.body
