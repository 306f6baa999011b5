"""Faults under the real binary: which, how many, and that only the expert they belong to suffers.

The command that prints the account, with 50 kills instead of a few:

  SWITCHYARD_FAULT_ROUNDS=50 pytest -s tests/integration/test_faults.py

Reads and writes are made to fail by a library (fault_shim.c) through LD_PRELOAD, so the program is unchanged.
SWITCHYARD_SEED repeats a run.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conftest import TINY, Server, binary, clean_environment, command

ROUNDS = int(os.environ.get("SWITCHYARD_FAULT_ROUNDS", "6"))
SEED = int(os.environ.get("SWITCHYARD_SEED", "20240611"))
NAMES = ["m0", "m1", "m2"]
EIO, SHORT, SLOW, GARBAGE, FULL = 1, 2, 3, 4, 5
FOREVER = 1 << 30


def shim():
    path = Path(os.environ.get("SWITCHYARD_BUILD", "")) / "tests" / "fault_shim.so"
    if not path.exists():
        pytest.skip("SWITCHYARD_BUILD names no build with tests/fault_shim.so")
    if os.environ.get("SWITCHYARD_SANITIZED"):
        pytest.skip("a sanitizer must be the first library")
    return str(path)


class Faults:
    """The shared numbers of fault_shim.c; `files` is a part of the names of the files that are hit."""

    def __init__(self, folder, files):
        self.path = Path(folder) / "control"
        self.none()
        self.env = {"LD_PRELOAD": shim(), "FAULT_CONTROL": str(self.path), "FAULT_FILE": files}

    def set(self, kind, after, count):
        with open(self.path, "r+b" if self.path.exists() else "w+b") as f:
            f.write(struct.pack("iii", 0, after, count))
            f.seek(0)
            f.write(struct.pack("i", kind))

    def none(self):
        self.set(0, 0, 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    code, out, err = command(folder, "bench", "variants", TINY, "--count", "4", "--out", folder / "models")
    assert code == 0, err
    for name, path in zip(NAMES, out.split()):
        code, _, err = command(folder, "experts", "add", path, "--name", name, "--store", folder / "store")
        assert code == 0, err
    return folder / "store"


def file_of(store, name):
    """The data file of an expert: they were imported in order, one file each."""
    files = sorted(p for p in (store / "data").iterdir() if p.stat().st_size > 65536)
    return files[NAMES.index(name)]


def others_while(server, what, names=("m0", "m2")):
    """Run `what` while the other experts are asked; they must all answer."""
    statuses, stop = [], threading.Event()

    def ask(name):
        while not stop.is_set():
            statuses.append(server.chat(model=name, max_tokens=4, temperature=0).status)

    threads = [threading.Thread(target=ask, args=(n,)) for n in names]
    for t in threads:
        t.start()
    try:
        return what()
    finally:
        stop.set()
        for t in threads:
            t.join()
        assert statuses and set(statuses) == {200}, statuses


def unload(server, name):
    """Out of hbm, however it got there."""
    code, _, err = command(server.folder, "tiers", "unload", name, "--to", "nvme", "--store", server.store)
    assert code == 0 or "in use" in err, err


def open_server(tmp_path, store, **env):
    shutil.copytree(store, tmp_path / "s")
    s = Server(tmp_path, "--store", tmp_path / "s", SWITCHYARD_ROUTER_GENERALIST="m0", SWITCHYARD_TIERS_VERIFY="always",
               **env)
    s.store = tmp_path / "s"
    return s


@pytest.mark.parametrize("kind, word", [(EIO, "Input/output error"), (SHORT, "ends too early"), (GARBAGE, "checksum")])
def test_reads_that_fail_hurt_their_expert_only(tmp_path, store, kind, word):
    shim()
    rng, fired = random.Random(SEED + kind), 0
    faults = Faults(tmp_path, file_of(store, "m1").name)
    s = open_server(tmp_path, store, SWITCHYARD_TIERS_LOADER="pread", **faults.env)
    want = s.chat(model="m1", temperature=0).text
    for _ in range(max(ROUNDS // 3, 2)):
        # One read: tried again after a pause, and nobody hears of it.
        unload(s, "m1")
        before = s.metric("switchyard_load_retries_total")
        faults.set(kind, rng.randrange(4), 1)
        reply = others_while(s, lambda: s.chat(model="m1", temperature=0))
        assert reply.status == 200 and reply.text == want, reply.body
        assert s.metric("switchyard_load_retries_total") == before + 1
        # All of them: a clear error, for this expert alone, until they end.
        unload(s, "m1")
        faults.set(kind, 0, FOREVER)
        reply = others_while(s, lambda: s.chat(model="m1", temperature=0))
        assert reply.status == 503 and reply.error["code"] == "model_load_failed", reply.body
        assert word in reply.error["message"] and file_of(store, "m1").name in reply.error["message"]
        faults.none()
        assert s.chat(model="m1", temperature=0).text == want
        fired += 2
    print(f"\nfault {kind} ({word}): {fired} injected, seed {SEED}: each an error of its expert or retried")
    assert s.metric("switchyard_load_failures_total") > 0
    assert s.stop() == 0


def test_slow_reads_delay_their_expert_only(tmp_path, store):
    faults = Faults(tmp_path, file_of(store, "m1").name)
    s = open_server(tmp_path, store, SWITCHYARD_TIERS_LOADER="pread", **faults.env)
    want = s.chat(model="m1", temperature=0).text
    unload(s, "m1")
    faults.set(SLOW, 0, 3)
    waits = []

    def ask():
        start = time.monotonic()
        reply = s.chat(model="m1", temperature=0)
        waits.append(time.monotonic() - start)
        return reply

    reply = others_while(s, ask)
    assert reply.status == 200 and reply.text == want and waits[0] > 0.25
    assert s.metric("switchyard_load_failures_total") == 0
    print(f"\nslow reads: 3 of 0.3 s injected, the request took {waits[0]:.2f} s, others were served")
    assert s.stop() == 0


@pytest.mark.parametrize("loader", ["auto", "pread", "buffered"])
def test_files_that_are_cut_or_replaced_under_us(tmp_path, store, loader):
    s = open_server(tmp_path, store, SWITCHYARD_TIERS_LOADER=loader)
    path, want = file_of(s.store, "m1"), s.chat(model="m1", temperature=0).text
    good, rng, done = path.read_bytes(), random.Random(SEED), 0
    for _ in range(max(ROUNDS // 3, 2)):
        for what in ("cut", "overwritten"):
            unload(s, "m1")
            if what == "cut":
                os.truncate(path, rng.randrange(len(good) // 2) & ~4095)
            else:
                path.write_bytes(rng.randbytes(len(good)))
            reply = others_while(s, lambda: s.chat(model="m1", temperature=0))
            assert reply.status == 503 and reply.error["code"] == "model_load_failed", (what, reply.body)
            assert path.name in reply.error["message"]
            path.write_bytes(good)
            assert s.chat(model="m1", temperature=0).text == want
            done += 1
    # Another file under the name, then none: the one that is open is still the good one.
    for what in ("replaced", "gone"):
        unload(s, "m1")
        if what == "replaced":
            other = path.with_name("other")
            other.write_bytes(rng.randbytes(len(good)))
            other.rename(path)
        else:
            path.unlink()
        assert s.chat(model="m1", temperature=0).text == want
        done += 1
    print(f"\n{loader}: file cut, overwritten, replaced or gone {done} times, seed {SEED}: an error of its expert "
          "where the bytes were lost, and served again when they were back")
    assert s.stop() == 0


def test_a_full_disk_during_import_leaves_the_store_as_it_was(tmp_path, store):
    models = sorted((store.parent / "models").iterdir())
    shutil.copytree(store, tmp_path / "s")
    _, before, _ = command(tmp_path, "experts", "list", "--json", "--store", tmp_path / "s")
    faults = Faults(tmp_path, ".seg")
    hits, k = 0, 0
    while True:
        faults.set(FULL, k, FOREVER)
        code, _, err = command(tmp_path, "experts", "add", models[3], "--name", "new", "--store", tmp_path / "s",
                               **faults.env)
        faults.none()
        if code == 0:
            break
        assert code == 1 and "No space left on device" in err, err
        assert command(tmp_path, "experts", "list", "--json", "--store", tmp_path / "s")[1] == before
        hits, k = hits + 1, k + 1
    code, out, _ = command(tmp_path, "experts", "verify", "--json", "--store", tmp_path / "s")
    assert code == 0 and json.loads(out)["bad"] == 0
    print(f"\ndisk full at each of {hits} writes of an import: refused with the cause, the store as before")
    assert hits > 1


def kill_at_random(folder, rng, longest, *arguments):
    """Start a command and kill it within its time; True if it was still running."""
    p = subprocess.Popen([binary(), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, env=clean_environment(folder))
    time.sleep(rng.random() * longest)
    running = p.poll() is None
    p.kill()
    p.wait()
    return running


def test_kill_during_import_and_gc_leaves_a_store_that_verifies(tmp_path, store):
    rng, killed = random.Random(SEED), 0
    models = sorted((store.parent / "models").iterdir())
    work = tmp_path / "s"
    shutil.copytree(store, work)
    start = time.monotonic()
    assert command(tmp_path, "experts", "add", models[3], "--name", "new", "--store", work)[0] == 0
    longest = time.monotonic() - start
    for i in range(ROUNDS):
        command(tmp_path, "experts", "rm", "new", "--store", work)
        if i % 3 == 2:
            killed += kill_at_random(tmp_path, rng, longest / 2, "experts", "gc", "--store", work)
        else:
            killed += kill_at_random(tmp_path, rng, longest, "experts", "add", models[3], "--name", "new", "--store", work)
        code, out, err = command(tmp_path, "experts", "verify", "--json", "--store", work)
        assert code == 0 and json.loads(out)["bad"] == 0, (out, err)
        _, listed, _ = command(tmp_path, "experts", "list", "--json", "--store", work)
        names = [json.loads(line)["name"] for line in listed.splitlines()]
        assert set(NAMES) <= set(names) <= set(NAMES + ["new"])
    assert command(tmp_path, "experts", "gc", "--store", work)[0] == 0
    assert command(tmp_path, "experts", "add", models[3], "--name", "new", "--store", work)[0] == 0
    print(f"\nkill -9 at {ROUNDS} random moments of import and gc ({killed} of them still running), seed {SEED}: "
          "every store verified")
    assert killed > 0


def test_a_writer_beside_a_daemon_is_told_who_has_the_store(tmp_path, store):
    s = open_server(tmp_path, store)
    models = sorted((store.parent / "models").iterdir())
    for arguments in (("experts", "add", models[3], "--name", "new"), ("experts", "gc"), ("experts", "rm", "m2")):
        code, _, err = command(tmp_path, *arguments, "--store", s.store)
        assert code == 1 and str(s.process.pid) in err, err
    code, out, err = command(tmp_path, "experts", "list", "--store", s.store)
    assert code == 0 and "m2" in out, err
    assert command(tmp_path, "serve", "--store", s.store, "--port", "0")[0] == 1
    assert s.chat(model="m2").status == 200
    assert s.stop() == 0
