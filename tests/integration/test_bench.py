"""`switchyard bench switch|load|variants`: what they print, in process and against a server. Speed is not judged."""

import json

import pytest

from conftest import TINY, Server, command

FIELDS = ["bench", "from", "pattern", "n", "ttft_ms_p50", "ttft_ms_p99", "excess_ms_p50", "excess_ms_p99", "bytes",
          "gb_per_s", "device_gb_per_s", "share_of_device", "cpu_s_per_gb", "loads", "hits", "evictions",
          "memcpy_gb_per_s", "resident_ttft_ms_p50", "load_ms_p50"]


def bench(folder, *arguments):
    code, out, err = command(folder, "bench", *arguments, "--json", "--fio", "none")
    assert code == 0, err
    row = json.loads(out)
    for field in FIELDS:
        assert field in row, field
    return row


@pytest.mark.parametrize("origin", ["nvme", "ddr"])
def test_a_load_moves_every_byte_of_every_expert(tmp_path, origin):
    row = bench(tmp_path, "load", "--model", TINY, "--experts", "3", "--requests", "6", "--from", origin)
    assert row["n"] == 6 and row["experts"] == 3 and row["loads"] > 0 and row["evictions"] == row["loads"]
    assert row["bytes"] % 6 == 0 and row["load_ms_p50"] > 0 and row["ttft_ms_p50"] is None
    assert (row["device_gb_per_s"] is None) == (origin == "ddr") or row["loader"].startswith("8 preads")


def test_a_switch_has_its_resident_pair(tmp_path):
    cold = bench(tmp_path, "switch", "--model", TINY, "--store", tmp_path / "kept", "--experts", "3",
                 "--requests", "5", "--pattern", "zipf:1.1", "--prompt", "8")
    assert cold["n"] == 5 and cold["ttft_ms_p50"] > 0 and cold["resident_ttft_ms_p50"] > 0 and cold["bytes"] > 0
    warm = bench(tmp_path, "switch", "--store", tmp_path / "kept", "--experts", "3", "--requests", "5", "--from",
                 "hbm", "--pattern", "rr", "--prompt", "8")
    assert warm["loads"] == 0 and warm["bytes"] == 0 and warm["launch_us_p99"] > 0 and warm["load_ms_p50"] is None


def test_a_server_is_measured_from_outside(tmp_path):
    names = []
    code, out, err = command(tmp_path, "bench", "variants", TINY, "--count", "2", "--out", tmp_path / "models")
    assert code == 0, err
    for i, path in enumerate(out.split()):
        code, _, err = command(tmp_path, "experts", "add", path, "--name", f"m{i}", "--store", tmp_path / "store")
        assert code == 0, err
        names.append(f"m{i}")
    server = Server(tmp_path, "--store", tmp_path / "store")
    row = bench(tmp_path, "switch", "--url", server.url, "--experts", "2", "--requests", "3", "--prompt", "4")
    assert row["n"] == 3 and row["from"] == "as-is" and row["ttft_ms_p50"] > 0
    assert server.stop() == 0


def test_variants_are_alike_and_share_nothing(tmp_path):
    code, out, err = command(tmp_path, "bench", "variants", TINY, "--count", "2", "--out", tmp_path / "models")
    assert code == 0, err
    first, second = out.split()
    store = tmp_path / "store"
    for name, path in (("tiny", TINY), ("one", first), ("two", second)):
        code, out, err = command(tmp_path, "experts", "add", path, "--name", name, "--store", store, "--json")
        assert code == 0, err
        assert json.loads(out)["segments_shared"] == 0
    again = tmp_path / "again"
    code, out, _ = command(tmp_path, "bench", "variants", TINY, "--count", "1", "--out", again)
    assert code == 0 and (again / "0001-tiny-llama-q8_0.gguf").read_bytes() == open(first, "rb").read()


@pytest.mark.parametrize("arguments, word", [
    (["switch", "--from", "disk"], "--from"), (["load", "--from", "hbm"], "nothing to load"),
    (["load", "--url", "http://127.0.0.1:1"], "bench switch"),
    (["switch", "--url", "http://127.0.0.1:1", "--from", "nvme"], "--admin"), (["variants", "x.gguf"], "--out")])
def test_what_makes_no_sense_is_refused(tmp_path, arguments, word):
    code, _, err = command(tmp_path, "bench", *arguments)
    assert code == 2 and word in err
