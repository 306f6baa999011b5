"""`switchyard batch`: a file of requests planned as a whole, over several tiny models in little memory."""

import json
import os
import signal
import subprocess
import time

import pytest

from conftest import DATA, PATIENCE, binary, clean_environment, command

MODELS = ["tiny-llama-f32", "tiny-gemma2-f32", "tiny-qwen2-f32", "tiny-qwen3-f32"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch")
    for name in MODELS:
        code, _, err = command(folder, "experts", "add", DATA / "tiny" / f"{name}.gguf", "--name", name,
                               "--store", folder / "store")
        assert code == 0, err
    return folder / "store"


def request(i, model, **more):
    body = {"model": model, "prompt": f"Number {i} is", "max_tokens": 4, "temperature": 0} | more
    return {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def batch(folder, store, *arguments):
    return command(folder, "batch", *arguments, "--store", store)


def mixed(count):
    return [request(i, MODELS[i * 7 % len(MODELS)]) for i in range(count)]


def texts(path):
    return [(a["custom_id"], a["response"]["body"]["choices"][0]["text"]) for a in read(path)]


def test_answers_come_in_the_order_of_the_input_and_do_not_depend_on_the_plan(store, tmp_path):
    source = write(tmp_path / "in.jsonl", mixed(40))
    for order in ["planned", "arrival"]:
        code, _, err = batch(tmp_path, store, source, tmp_path / f"{order}.jsonl", "--order", order)
        assert code == 0, err
    planned = texts(tmp_path / "planned.jsonl")
    assert [custom_id for custom_id, _ in planned] == [f"r{i}" for i in range(40)]
    assert planned == texts(tmp_path / "arrival.jsonl")
    assert not (tmp_path / "planned.jsonl.partial").exists()
    assert not (tmp_path / "planned.jsonl.errors").exists()


def test_the_plan_groups_by_expert_and_loads_each_once(store, tmp_path):
    source = write(tmp_path / "in.jsonl", mixed(40))
    code, out, err = batch(tmp_path, store, source, tmp_path / "out.jsonl", "--analyze", "--json", "--hbm", "8MiB")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["lines"], plan["bad"], plan["done"], plan["failed"]) == (40, 0, 40, 0)
    assert sorted(g["expert"] for g in plan["groups"]) == sorted(MODELS)
    assert all(g["lines"] == 10 for g in plan["groups"])
    assert plan["groups"][0]["load_bytes"] == 0  # the generalist is in memory already
    assert plan["planned"]["expert_loads"] == len(MODELS) - 1
    for what in ["segment_loads", "bytes"]:
        assert plan["measured"][what] == plan["planned"][what]
        assert plan["first_come"][what] >= plan["planned"][what]


def test_explain_runs_nothing(store, tmp_path):
    source = write(tmp_path / "in.jsonl", mixed(8))
    code, out, err = batch(tmp_path, store, source, tmp_path / "out.jsonl", "--explain")
    assert code == 0, err
    for operator in ["scan", "validate", "route", "group", "order", "generate", "restore", "sink"]:
        assert operator in out
    assert list(tmp_path.glob("out.jsonl*")) == []


@pytest.mark.parametrize("line, param, status", [
    ('{"custom_id": "x"', None, 400),
    ("[1, 2]", None, 400),
    ({"custom_id": "x", "method": "POST", "url": "/v1/embeddings", "body": {}}, "url", 400),
    ({"custom_id": "x", "method": "GET", "url": "/v1/completions", "body": {}}, "method", 400),
    ({"custom_id": "x", "method": "POST", "body": {}}, "url", 400),
    ({"custom_id": "x", "method": "POST", "url": "/v1/completions"}, "body", 400),
    ({"method": "POST", "url": "/v1/completions", "body": {}}, "custom_id", 400),
    (request(0, MODELS[0]), "custom_id", 400),  # there already
    (request(9, "nobody"), "model", 404),
    (request(9, MODELS[0], stream=True), "stream", 400),
    (request(9, MODELS[0], temperature=9), "temperature", 400),
])
def test_a_bad_line_is_kept_apart_with_its_reason(store, tmp_path, line, param, status):
    source = write(tmp_path / "in.jsonl", [request(0, MODELS[0]), line, "", request(1, MODELS[1])])
    code, _, err = batch(tmp_path, store, source, tmp_path / "out.jsonl")
    assert code == 0, err
    assert [a["custom_id"] for a in read(tmp_path / "out.jsonl")] == ["r0", "r1"]
    bad, = read(tmp_path / "out.jsonl.errors")
    assert bad["line"] == 2
    assert bad["response"]["status_code"] == status
    assert bad["response"]["body"]["error"]["param"] == param


def test_a_line_that_the_engine_refuses_fails_alone(store, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(f"store:\n  path: {store}\nsched:\n  max_sequences: 2\n")
    source = write(tmp_path / "in.jsonl", [request(i, MODELS[0], n=3 if i == 1 else 1) for i in range(4)])
    code, _, err = command(tmp_path, "batch", source, tmp_path / "out.jsonl", "--config", config)
    assert code == 0, err
    assert [a["custom_id"] for a in read(tmp_path / "out.jsonl")] == ["r0", "r2", "r3"]
    bad, = read(tmp_path / "out.jsonl.errors")
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("r1", 400)
    assert bad["response"]["body"]["error"]["param"] == "n"


def test_a_bare_body_is_a_request(store, tmp_path):
    source = write(tmp_path / "in.jsonl", [request(0, MODELS[0])["body"]])
    code, _, err = batch(tmp_path, store, source, tmp_path / "out.jsonl")
    assert code == 0, err
    assert [a["custom_id"] for a in read(tmp_path / "out.jsonl")] == ["line-1"]


def kill_when_partly_done(folder, arguments, partial):
    process = subprocess.Popen([binary(), "batch", *map(str, arguments)], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=clean_environment(folder))
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if partial.exists() and partial.read_bytes().count(b"\n") > 10:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait(timeout=PATIENCE)
    return process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_where_it_was(store, tmp_path):
    source = write(tmp_path / "in.jsonl", [request(i, MODELS[i % 4], max_tokens=24) for i in range(400)])
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    assert kill_when_partly_done(tmp_path, [source, out, "--store", store], partial)
    assert not out.exists()
    with open(partial, "ab") as torn:
        torn.write(b"399 ok {\"custom_id\": \"r3")  # what a kill in the middle of a write leaves
    kept = partial.read_bytes().count(b"\n") - 1
    code, text, err = batch(tmp_path, store, source, out, "--analyze", "--json")
    assert code == 0, err
    plan = json.loads(text)
    assert plan["finished_before"] == kept > 0
    assert plan["done"] == 400 - kept
    code, _, err = batch(tmp_path, store, source, tmp_path / "whole.jsonl")
    assert code == 0, err
    assert texts(out) == texts(tmp_path / "whole.jsonl")


def test_another_input_does_not_continue_an_interrupted_run(store, tmp_path):
    source = write(tmp_path / "in.jsonl", [request(i, MODELS[i % 4], max_tokens=24) for i in range(400)])
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    assert kill_when_partly_done(tmp_path, [source, out, "--store", store], partial)
    other = write(tmp_path / "other.jsonl", mixed(4))
    code, _, err = batch(tmp_path, store, other, out)
    assert code == 1 and "another input" in err and "--restart" in err
    code, _, err = batch(tmp_path, store, other, out, "--restart")
    assert code == 0, err
    assert len(read(out)) == 4


def test_an_output_that_is_there_is_not_overwritten(store, tmp_path):
    source, out = write(tmp_path / "in.jsonl", mixed(4)), tmp_path / "out.jsonl"
    out.write_text("precious\n")
    code, _, err = batch(tmp_path, store, source, out)
    assert code == 1 and "--force" in err
    assert out.read_text() == "precious\n"
    code, _, err = batch(tmp_path, store, source, out, "--force")
    assert code == 0, err
    assert len(read(out)) == 4


def test_what_cannot_be_read_or_written_is_said(store, tmp_path):
    source = write(tmp_path / "in.jsonl", mixed(4))
    code, _, err = batch(tmp_path, store, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    assert code == 1 and "none.jsonl" in err
    code, _, err = batch(tmp_path, store, source, tmp_path / "no" / "out.jsonl")
    assert code == 1 and "out.jsonl" in err
    code, _, err = batch(tmp_path, store, tmp_path, tmp_path / "out.jsonl")
    assert code == 1 and "regular file" in err


def test_an_empty_input_gives_an_empty_output(store, tmp_path):
    source = write(tmp_path / "in.jsonl", [])
    code, _, err = batch(tmp_path, store, source, tmp_path / "out.jsonl")
    assert code == 0, err
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert os.listdir(tmp_path).count("out.jsonl.partial") == 0
