"""deploy/quickstart end to end, with the binary under test in place of a build."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "deploy" / "quickstart"
# Importing and answering under a sanitizer takes its time on two cores.
PATIENCE = 600 if os.environ.get("SWITCHYARD_SANITIZED") else 180

pytestmark = pytest.mark.skipif("SWITCHYARD_BINARY" not in os.environ,
                                reason="SWITCHYARD_BINARY names no binary to test")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def arguments(folder, port, *more):
    model = os.environ.get("SWITCHYARD_MODEL")
    return [str(QUICKSTART), "--dir", str(folder), "--port", str(port), "--encoder", "none", *more,
            *(["--model", model] if model else [])]


def run(*command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=PATIENCE, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def first_run(folder):
    done = run(*arguments(folder, free_port(), "--once"))
    assert done.returncode == 0, done.stdout
    return done


def test_first_run_imports_the_zoo_and_answers(first_run, folder):
    assert ": 14 (0 were there already)" in first_run.stdout
    assert "answered by" in first_run.stdout and "because" in first_run.stdout
    assert "curl -s http://127.0.0.1:" in first_run.stdout
    answer = json.loads((folder / "answer.json").read_text())
    assert answer["choices"][0]["message"]["content"].strip()


def test_the_router_chose_the_expert_for_sql(first_run):
    if not (ROOT / "router" / "zoo.head").exists():
        pytest.skip("there is no routing head")
    assert "answered by  text2sql" in first_run.stdout, first_run.stdout


def test_second_run_imports_nothing(first_run, folder):
    second = run(*arguments(folder, free_port(), "--once"))
    assert second.returncode == 0, second.stdout
    assert "(14 were there already)" in second.stdout


def test_own_configuration_is_kept(first_run, folder):
    config = folder / "switchyard.yaml"
    written = config.read_text()
    own = "# mine\n" + written.split("\n", 1)[1]
    config.write_text(own)
    try:
        again = run(*arguments(folder, free_port(), "--once"))
        assert again.returncode == 0, again.stdout
        assert "Keeping your own" in again.stdout
        assert config.read_text() == own
    finally:
        config.write_text(written)


def test_refused_configuration_ends_it_with_the_reason(first_run, folder):
    config = folder / "switchyard.yaml"
    written = config.read_text()
    config.write_text("server: {prot: 1}\n")
    try:
        again = run(*arguments(folder, free_port(), "--once"))
        assert again.returncode == 1
        assert "did you mean 'server.port'" in again.stdout
    finally:
        config.write_text(written)


def wait_for(url, process):
    for _ in range(PATIENCE * 10):
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_foreground_run_serves_and_takes_the_daemon_with_it(first_run, folder, ending):
    port = free_port()
    process = subprocess.Popen(arguments(folder, port), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True,
                               # A shell's background job ignores SIGINT, and so would all it starts.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        assert wait_for(f"http://127.0.0.1:{port}/ready", process) == 200
        process.send_signal(ending)
        assert process.wait(timeout=60) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()


def test_busy_port_is_refused_before_anything_is_done(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        busy = run(*arguments(tmp_path, s.getsockname()[1], "--once"))
    assert busy.returncode == 1
    assert "choose another with --port" in busy.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong, status", [(["--nonsense"], 2), (["--port"], 2),
                                           (["--port", "x"], 1), (["--port", "70000"], 1),
                                           (["--model", "/nonexistent"], 1)])
def test_wrong_usage_is_told(wrong, status, tmp_path):
    told = run(str(QUICKSTART), "--dir", str(tmp_path / "d"), *wrong)
    assert told.returncode == status
    assert told.stdout.strip()
