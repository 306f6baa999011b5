"""Commands: help that teaches, and exit codes 0, 1 and 2."""

import json
import re

import pytest
from conftest import TINY, binary, command


def commands(tmp_path):
    code, out, _ = command(tmp_path, "--help")
    assert code == 0
    block = out.split("Commands:\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in block.splitlines()]


def test_every_command_teaches(tmp_path):
    names = commands(tmp_path)
    assert {"serve", "check", "experts", "route", "bench", "chat"} <= set(names)
    for name in names:
        code, out, err = command(tmp_path, name, "--help")
        assert (code, err) == (0, ""), name
        assert f"Usage: switchyard {name}" in out, out
        assert out.count("switchyard " + name) >= 2, f"{name} has no example"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve", "--nonsense"], ["serve", "extra"],
                                       ["serve", "--port"], ["check", "--json=1"], ["-x"]])
def test_wrong_usage_is_2(arguments, tmp_path):
    code, out, err = command(tmp_path, *arguments)
    assert code == 2 and out == "" and "--help" in err


def test_help_of_a_command_both_ways(tmp_path):
    assert command(tmp_path, "help", "serve") == command(tmp_path, "serve", "--help")
    assert command(tmp_path, "help", "nonsense")[0] == 2


def test_misspelt_names_are_suggested(tmp_path):
    assert "did you mean 'serve'" in command(tmp_path, "sevre")[2]
    assert "did you mean --config" in command(tmp_path, "serve", "--confg", "x")[2]


def test_version(tmp_path):
    code, out, _ = command(tmp_path, "--version")
    assert code == 0 and re.fullmatch(r"switchyard \d+\.\d+\.\d+\n", out)


def test_check_prints_the_effective_configuration(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("server: {port: 9000, api_keys: [secret-key]}\ntiers: {hbm: 64MiB}\n")
    code, out, _ = command(tmp_path, "check", "--config", config, SWITCHYARD_SERVER_PORT="9001")
    assert code == 0
    assert "9001" in out and "64" in out and "secret-key" not in out
    code, out, _ = command(tmp_path, "check", "--config", config, "--json")
    told = json.loads(out)
    assert code == 0 and told["budget"]["hbm_bytes"] == 64 << 20
    assert "secret-key" not in out


@pytest.mark.parametrize("text, word", [
    ("server: {prot: 1}", "server.port"),
    ("server: {port: many}", "server.port"),
    ("tiers: {hbm: -1}", "tiers.hbm"),
    ("experts: [{name: a}, {name: a}]", "a"),
    ("server: [", "line"),
])
def test_check_refuses_with_the_key(text, word, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(text + "\n")
    code, out, err = command(tmp_path, "check", "--config", config)
    assert code == 1 and word in err, err


def test_check_knows_the_store(start, tmp_path):
    s = start("--model", TINY)
    assert s.stop() == 0
    told = json.loads(command(tmp_path, "check", "--json")[1])
    assert told["budget"]["experts"] == 1 and told["budget"]["hbm_bytes"] > 0


def test_output_to_a_closed_pipe_is_no_signal(tmp_path):
    import subprocess
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run([binary(), "check", "--keys"], stdout=reader.stdin, check=False,
                          stderr=subprocess.PIPE, timeout=30)
    reader.stdin.close()
    assert done.returncode >= 0
