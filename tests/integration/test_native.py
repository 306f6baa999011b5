"""Native code from the outside: same answers, made ahead of time or not at all; node time beside host time."""
import os
import shutil

import pytest

from conftest import command

TINY = os.path.join(os.environ.get("SWITCHYARD_SHARED", ""), "fixtures/tiny/tiny-llama-q4_1.gguf")
EXPECTED = " of the breath. The side of him is the skin of the wicked"
needs_tiny = pytest.mark.skipif(not os.path.exists(TINY), reason="no tiny model here")
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


@needs_tiny
@needs_cc
def test_compile_makes_the_object_once(tmp_path):
    cache = str(tmp_path / "cache")
    code, out, err = command(tmp_path, "compile", "--model", TINY, "--cache", cache)
    assert code == 0, err
    assert "1 compiled" in out and len(os.listdir(cache)) == 1
    code, out, err = command(tmp_path, "compile", "--model", TINY, "--cache", cache, "--compiler", "cc")
    assert code == 0 and "0 compiled" in out and "1 taken from the cache" in out


@needs_tiny
def test_compile_says_why_it_cannot(tmp_path):
    code, out, err = command(tmp_path, "compile", "--model", TINY, "--cache", str(tmp_path / "c"),
                             "--compiler", "no-such-compiler")
    assert code == 1 and "there is no C compiler" in err and "fused" in err
    (tmp_path / "file").write_text("")
    code, out, err = command(tmp_path, "compile", "--model", TINY, "--cache", str(tmp_path / "file"))
    assert code == 1 and str(tmp_path / "file") in err


@needs_tiny
@pytest.mark.parametrize("level", ["fused", "native"])
def test_every_level_gives_one_text_and_tells_node_time(start, level):
    server = start("--model", TINY, "--exec", level)
    reply = server.post("/v1/completions", {"model": "auto", "prompt": "In the beginning", "max_tokens": 24,
                                            "temperature": 1, "seed": 3, "x_switchyard": True}).json
    assert reply["choices"][0]["text"] == EXPECTED
    assert reply["x_switchyard"]["node_ms"] > 0
    lines = server.get("/metrics").body.decode().splitlines()
    value = {what: float(line.split()[-1]) for line in lines for what in ("run", "load")
             if line.startswith('switchyard_node_seconds_total{what="%s"}' % what)}
    assert value["run"] > 0 and value["load"] >= 0
