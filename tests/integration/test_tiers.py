"""Operators: `switchyard tiers`, /admin, held experts, times to live, live budgets. Small models, made of one."""

import http.client
import json
import re
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from conftest import PATIENCE, TINY, Server, command

NAMES = ["m0", "m1", "m2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    code, out, err = command(folder, "bench", "variants", TINY, "--count", str(len(NAMES)), "--out", folder / "models")
    assert code == 0, err
    for name, path in zip(NAMES, out.split()):
        code, _, err = command(folder, "experts", "add", path, "--name", name, "--store", folder / "store")
        assert code == 0, err
    return folder / "store"


@pytest.fixture
def begin(store):
    """Servers over a store of their own, in a folder whose name is short enough for a socket."""
    started, folders = [], []

    def start(*arguments, experts=None, **more):
        folder = Path(tempfile.mkdtemp(prefix="sy-"))
        folders.append(folder)
        shutil.copytree(store, folder / "store")
        config = folder / "conf.yaml"
        config.write_text(json.dumps({"experts": experts or []}))
        s = Server(folder, "--config", config, "--store", folder / "store", *arguments, **more)
        s.store = folder / "store"
        started.append(s)
        return s

    yield start
    for s in started:
        if s.process.poll() is None:
            s.process.kill()
            s.process.wait()
    for folder in folders:
        shutil.rmtree(folder)


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


def admin(server, method, path, body=None, key=None):
    c = Unix(server.store / "admin.sock")
    c.request(method, path, None if body is None else json.dumps(body), {"Authorization": f"Bearer {key}"} if key else {})
    r = c.getresponse()
    return r.status, json.loads(r.read())


def tiers(server, *arguments):
    return command(server.folder, "tiers", *arguments, "--store", server.store)


def place(server, name):
    status, state = admin(server, "GET", f"/admin/experts/{name}")
    assert status == 200, state
    return state


def test_an_expert_is_loaded_held_unloaded_and_each_answer_says_from_where(begin):
    s = begin(experts=[{"name": "m0"}], SWITCHYARD_ROUTER_GENERALIST="m0")
    status, out = admin(s, "POST", "/admin/experts/m1/load")
    assert status == 200 and out["tier"] == "nvme" and out["bytes"] > 0 and out["ms"] > 0
    assert admin(s, "POST", "/admin/experts/m1/load")[1] == {**out, "tier": "hbm", "bytes": 0,
                                                            "ms": pytest.approx(0, abs=500)}
    assert place(s, "m1")["bytes"] == {"hbm": out["bytes"]}
    status, held = admin(s, "POST", "/admin/experts/m1/hold")
    assert status == 200 and place(s, "m1")["held"]
    status, refused = admin(s, "POST", "/admin/experts/m1/unload")
    assert status == 503 and "unhold" in refused["error"]["message"]
    assert admin(s, "POST", "/admin/experts/m1/hold", {"hold": False})[0] == 200
    status, gone = admin(s, "POST", "/admin/experts/m1/unload")
    assert status == 200 and gone["bytes"] == out["bytes"] and gone["tier"] == "nvme"
    assert place(s, "m1") == {"name": "m1", "adapter": False, "held": False, "bytes": {"nvme": out["bytes"]}}
    status, begun = admin(s, "POST", "/admin/experts/m1/prefetch")
    assert status == 200 and begun["bytes"] == out["bytes"]
    assert s.chat(model="m1").status == 200
    assert s.metric('switchyard_prefetches_total{outcome="used"}') > 0
    assert s.metric('switchyard_hits_total{tier="hbm"}') > 0
    assert s.metric('switchyard_evictions_total{tier="hbm",kind="layer"}') > 0
    assert any(line["event"] == "admin" and "unload m1" in line["message"] for line in s.log())
    assert s.stop() == 0 and not (s.store / "admin.sock").exists()


def test_the_generalist_is_held_until_it_is_unheld(begin):
    s = begin(SWITCHYARD_ROUTER_GENERALIST="m0")
    assert place(s, "m0")["held"]
    status, refused = admin(s, "POST", "/admin/experts/m0/unload")
    assert status == 503 and "unhold" in refused["error"]["message"]
    assert admin(s, "POST", "/admin/experts/m0/unhold")[0] == 200
    assert not place(s, "m0")["held"]
    status, gone = admin(s, "POST", "/admin/experts/m0/unload")
    assert status == 200 and gone["tier"] == "nvme" and gone["bytes"] > 0
    assert s.chat(model="m0").status == 200
    assert admin(s, "POST", "/admin/experts/m0/hold")[0] == 200
    assert place(s, "m0")["held"] and "hbm" in place(s, "m0")["bytes"]
    assert admin(s, "POST", "/admin/experts/m0/unhold")[0] == 200
    assert not place(s, "m0")["held"]


def test_with_ddr_what_is_unloaded_comes_back_from_there(begin):
    s = begin("--ddr", "64MiB", SWITCHYARD_ROUTER_GENERALIST="m0")
    size = admin(s, "POST", "/admin/experts/m2/load")[1]["bytes"]
    admin(s, "POST", "/admin/experts/m2/unload")
    for _ in range(200):
        if s.metric('switchyard_load_bytes_total{from="hbm",to="ddr"}') >= size:
            break
        time.sleep(0.02)
    status, out = admin(s, "POST", "/admin/experts/m2/load")
    assert status == 200 and out["tier"] == "ddr" and out["bytes"] == size
    assert s.metric('switchyard_load_seconds_count{from="ddr",to="hbm"}') > 0
    assert s.metric('switchyard_hits_total{tier="ddr"}') > 0
    status, out = admin(s, "POST", "/admin/experts/m2/unload", {"to": "nvme"})
    assert status == 200 and out["tier"] == "nvme"
    assert s.stop() == 0


def test_held_experts_are_there_when_the_server_is_ready(begin):
    s = begin(experts=[{"name": "m1", "hold": True}, {"name": "m2", "hold": True}], SWITCHYARD_ROUTER_GENERALIST="m0")
    for name in ("m1", "m2"):
        assert place(s, name)["held"] and list(place(s, name)["bytes"]) == ["hbm"]
        reply = s.chat(model=name, x_switchyard=True)
        assert reply.json["x_switchyard"]["origin"] == "hbm" and reply.json["x_switchyard"]["load_bytes"] == 0
    assert s.stop() == 0


def test_holds_that_leave_no_room_are_refused_with_numbers(begin, store):
    folder = store.parent
    conf = folder / "hold.yaml"
    conf.write_text(json.dumps({"experts": [{"name": n, "hold": True} for n in NAMES[:2]]}))
    code, out, err = command(folder, "tiers", "plan", "--config", conf, "--store", store, "--json", "--quick")
    assert code == 0, err
    plan = json.loads(out)
    one = plan["experts"][0]["hbm_bytes"]
    assert plan["experts_bytes"] == 3 * one and plan["held_bytes"] == 2 * one and plan["refusal"] is None
    little = 2 * one + one // 2
    code, out, err = command(folder, "tiers", "plan", "--config", conf, "--store", store, "--hbm", f"{little}B", "--quick")
    assert code == 1 and "raise it to" in err and "This cannot work" in out
    code, _, err = command(folder, "serve", "--config", conf, "--store", store, "--hbm", f"{little}B", "--port", "0")
    assert code == 1 and "raise it to" in err and "hold less" in err
    code, _, err = command(folder, "tiers", "plan", "--store", store, "--hbm", "4000GiB")
    assert code == 1 and "may use" in err


def test_an_expert_leaves_when_its_time_is_over(begin):
    s = begin(experts=[{"name": "m1", "ttl_s": 0.5}], SWITCHYARD_ROUTER_GENERALIST="m0")
    assert s.chat(model="m1").status == 200 and s.chat(model="m2").status == 200
    for _ in range(300):
        if "hbm" not in place(s, "m1")["bytes"]:
            break
        time.sleep(0.02)
    assert list(place(s, "m1")["bytes"]) == ["nvme"] and "hbm" in place(s, "m2")["bytes"]
    assert s.metric("switchyard_experts_expired_total") == 1
    assert s.chat(model="m1").status == 200
    assert s.stop() == 0


def test_the_budget_changes_while_requests_run(begin):
    s = begin("--hbm", "64MiB", SWITCHYARD_ROUTER_GENERALIST="m0")
    answers = []

    def ask(name):
        for _ in range(12):
            answers.append(s.chat(model=name, max_tokens=24, temperature=0).status)

    threads = [threading.Thread(target=ask, args=(n,)) for n in NAMES]
    for t in threads:
        t.start()
    for size in ("8MiB", "64MiB", "6MiB", "32MiB"):
        code, _, err = tiers(s, "budget", size)
        assert code == 0 or "still being carried out" in err, err
        time.sleep(0.05)
    for t in threads:
        t.join()
    assert set(answers) == {200}
    for _ in range(200):
        if tiers(s, "budget", "6MiB")[0] == 0:
            break
        time.sleep(0.02)
    state = json.loads(tiers(s, "status", "--json")[1])
    assert state["hbm"]["budget"] == 6 << 20 and state["hbm"]["used"] <= 6 << 20
    code, _, err = tiers(s, "budget", "64KiB")
    assert code == 1 and "held" in err
    assert s.stop() == 0


def test_status_shows_what_is_and_the_loader_in_use(begin):
    for loader, word in (("pread", "preads"), ("buffered", "preads (buffered"), ("auto", "")):
        s = begin(SWITCHYARD_TIERS_LOADER=loader, SWITCHYARD_ROUTER_GENERALIST="m0")
        code, out, err = tiers(s, "status")
        assert code == 0, err
        assert word in out and "policy  gdsf, verify first" in out
        for name in NAMES:
            assert re.search(rf"^{name}\s", out, re.M)
        code, out, err = tiers(s, "load", "m1")
        assert code == 0 and json.loads(out)["tier"] == "nvme", err
        assert s.stop() == 0
    code, _, err = tiers(s, "status")
    assert code == 1 and "is 'switchyard serve' running" in err


def test_admin_on_a_port_wants_the_key_and_refuses_nonsense(begin):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    s = begin(SWITCHYARD_SERVER_ADMIN_PORT=str(port), SWITCHYARD_SERVER_API_KEYS="secret", key="secret")
    assert admin(s, "GET", "/admin/tiers")[0] == 401
    assert admin(s, "GET", "/admin/tiers", key="secret")[0] == 200
    code, out, err = command(s.folder, "tiers", "status", "--url", f"http://127.0.0.1:{port}", "--key", "secret", "--json")
    assert code == 0 and json.loads(out)["nvme"]["used"] > 0, err
    for method, path, body, want in (
            ("POST", "/admin/experts/nobody/load", {}, 404), ("POST", "/admin/experts/m0/explode", {}, 404),
            ("POST", "/admin/experts/m0/unload", {"to": "mars"}, 400), ("POST", "/admin/tiers", {"hbm": "much"}, 400),
            ("POST", "/admin/tiers", {"hbm": "9999GiB"}, 507), ("POST", "/admin/tiers", [], 400),
            ("GET", "/admin/nothing", None, 404), ("DELETE", "/admin/tiers", None, 400)):
        status, out = admin(s, method, path, body, key="secret")
        assert status == want and out["error"]["message"], (path, status, out)
    page = urllib.request.Request(f"http://127.0.0.1:{port}/admin/tiers", headers={"Origin": "http://evil.example",
                                                                                   "Authorization": "Bearer secret"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(page, timeout=PATIENCE)
    assert refused.value.code == 403
    assert s.get("/admin/tiers").status == 404  # not on the public listener
    assert s.stop() == 0


def test_what_a_conversation_wants_next_is_brought_in_early(begin):
    s = begin(SWITCHYARD_ROUTER_GENERALIST="m0")

    def talk(i, model):
        body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": f"talk {i}"}]}
        assert s.post("/v1/chat/completions", body).status == 200

    for i in range(8):  # every conversation goes from m1 to m2
        talk(i, "m1")
        talk(i, "m2")
    assert s.metric('switchyard_turns_foretold_total{outcome="right"}') > 0
    assert s.metric('switchyard_turns_foretold_total{outcome="wrong"}') == 0
    assert tiers(s, "unload", "m2", "--to", "nvme")[0] == 0
    talk(99, "m1")
    for _ in range(200):
        if place(s, "m2")["bytes"].keys() == {"hbm"}:
            break
        time.sleep(0.02)
    assert place(s, "m2")["bytes"].keys() == {"hbm"}  # nobody has asked for it yet
    assert s.stop() == 0
