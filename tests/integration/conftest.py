"""The real binary on an ephemeral port, and clients of several kinds.

SWITCHYARD_BINARY names the program; SWITCHYARD_MODEL a GGUF model (default: a tiny one of the tree).
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
TINY = DATA / "tiny" / "tiny-llama-q8_0.gguf"
# Starting and answering under a sanitizer takes its time on two cores.
PATIENCE = 300 if os.environ.get("SWITCHYARD_SANITIZED") else 180


def binary():
    path = os.environ.get("SWITCHYARD_BINARY")
    if not path:
        pytest.skip("SWITCHYARD_BINARY names no binary to test")
    return path


def clean_environment(folder):
    """No setting of the caller's machine reaches the program under test."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}
    env["XDG_DATA_HOME"] = str(folder)
    env["XDG_CACHE_HOME"] = str(folder)
    return env


def command(folder, *arguments, **more):
    """One command to its end; (exit code, stdout, stderr)."""
    done = subprocess.run([binary(), *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=PATIENCE, check=False,
                          env=clean_environment(folder) | more)
    return done.returncode, done.stdout, done.stderr


class Server:
    """A running `switchyard serve`; ends with the test."""

    def __init__(self, folder, *arguments, wait=True, key=None, **env):
        self.folder = Path(folder)
        self.key = key
        self.out = self.folder / "stdout.log"
        self.err = self.folder / "stderr.log"
        with open(self.out, "ab") as out, open(self.err, "ab") as err:
            self.process = subprocess.Popen([binary(), "serve", "--port", "0", *map(str, arguments)],
                                            stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                            env=clean_environment(folder) | env)
        self.port = self.wait_for_port()
        self.url = f"http://127.0.0.1:{self.port}"
        if wait:
            self.wait_ready()

    def wait_for_port(self):
        for _ in range(PATIENCE * 50):
            found = re.search(r"^switchyard \S+ on http://\S+:(\d+)$", self.err.read_text(), re.M)
            if found:
                return int(found[1])
            assert self.process.poll() is None, self.err.read_text()
            time.sleep(0.02)
        raise AssertionError("no port: " + self.err.read_text())

    def wait_ready(self):
        for _ in range(PATIENCE * 50):
            if self.get("/ready").status == 200:
                return
            time.sleep(0.02)
        raise AssertionError("not ready: " + self.err.read_text())

    def ask(self, method, path, body=None, headers=None):
        """status, headers, body; never raises for a status."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        for name, value in (headers or {}).items():
            if value is None:
                request.remove_header(name.capitalize())
            else:
                request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as r:
                return Reply(r.status, r.headers, r.read())
        except urllib.error.HTTPError as e:
            return Reply(e.code, e.headers, e.read())

    def get(self, path, headers=None):
        return self.ask("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        return self.ask("POST", path, body, headers)

    def chat(self, content="Hi", **more):
        body = {"model": "auto", "messages": [{"role": "user", "content": content}],
                "max_tokens": 8} | more
        return self.post("/v1/chat/completions", body)

    @property
    def model(self):
        return self.get("/v1/models").json["data"][0]["id"]

    def metric(self, line):
        """The value of one sample, by name and labels as printed; 0 if it is not there."""
        text = self.get("/metrics").body.decode()
        found = re.search("^" + re.escape(line) + r" (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    def log(self):
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def wait_log(self, condition):
        for _ in range(PATIENCE * 50):
            for line in self.log():
                if condition(line):
                    return line
            time.sleep(0.02)
        raise AssertionError("the log does not say it:\n" + self.out.read_text()[-3000:])

    def connect(self):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def raw_post(self, body, path="/v1/chat/completions", headers=""):
        """A POST on a socket of its own, for what no library would do."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        s = self.connect()
        s.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{headers}"
                  f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return s

    def memory_kib(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"^VmRSS:\s+(\d+)", status, re.M)[1])

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=PATIENCE)


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def text(self):
        choice = self.json["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]


def sse_events(body):
    """The data of a text/event-stream, comments left out; the last may be '[DONE]'."""
    text = body.decode() if isinstance(body, bytes) else body
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        assert all(line.startswith("data: ") for line in lines), block
        data = "\n".join(line[6:] for line in lines)
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


def model_path():
    return Path(os.environ.get("SWITCHYARD_MODEL", TINY))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for all tests that only ask; a test that changes it starts its own."""
    s = Server(tmp_path_factory.mktemp("server"), "--model", model_path())
    yield s
    assert s.stop() == 0


@pytest.fixture
def start(tmp_path):
    """Start servers of one's own, ended with the test."""
    started = []

    def begin(*arguments, **more):
        s = Server(tmp_path, *arguments, **more)
        started.append(s)
        return s

    yield begin
    for s in started:
        if s.process.poll() is None:
            s.process.kill()
            s.process.wait()


@pytest.fixture
def client(server):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
