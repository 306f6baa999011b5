"""The order of the tree: who may include whom, headers that stand alone, sizes, traces of machines."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Includes go downward only (README, the house): room -> rooms it may include.
MAY_INCLUDE = {
    "base": set(),
    "rdu": {"base"},
    "memtier": {"base"},
    "experts": {"base", "rdu", "memtier"},
    "router": {"base", "rdu", "experts"},
    "conf": {"base"},
    "daemon": {"base", "rdu", "memtier", "experts", "router", "conf"},
}
LINES_MAX = 900
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def tracked(*suffixes):
    """Files of the tree with these endings: those git knows, or all where this is no clone."""
    listing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others",
                              "--exclude-standard"], capture_output=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        names = listing.stdout.decode().split("\0")
    else:
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
    found = [ROOT / n for n in names if n and n.endswith(suffixes) and not n.startswith("build")]
    return sorted(p for p in found if p.is_file())


def relative(path):
    return str(path.relative_to(ROOT))


def read(path):
    return path.read_text(encoding="utf-8", errors="replace")


def rooms_sources():
    return [p for p in tracked(".c", ".h") if relative(p).split("/")[0] in MAY_INCLUDE]


def test_the_tree_has_sources():
    assert len(rooms_sources()) > 20


def test_includes_go_downward_only():
    wrong = []
    for path in rooms_sources():
        room = relative(path).split("/")[0]
        for name in INCLUDE.findall(read(path)):
            other = name.split("/")[0]
            if other in MAY_INCLUDE and other != room and other not in MAY_INCLUDE[room]:
                wrong.append(f"{relative(path)} includes {name}")
    assert not wrong, "\n".join(wrong)


def test_other_rooms_are_seen_through_their_public_header_only():
    wrong = []
    for path in rooms_sources():
        room = relative(path).split("/")[0]
        for name in INCLUDE.findall(read(path)):
            other = name.split("/")[0]
            if other in MAY_INCLUDE and other != room and name != f"{other}/{other}.h":
                wrong.append(f"{relative(path)} includes {name}")
    assert not wrong, "\n".join(wrong)


def test_no_source_file_is_included():
    wrong = [relative(p) for p in tracked(".c", ".h")
             if any(name.endswith(".c") for name in INCLUDE.findall(read(p)))]
    assert not wrong


@pytest.mark.parametrize("room", sorted(set(MAY_INCLUDE) - {"daemon"}))
def test_public_header_compiles_alone(room):
    header = ROOT / room / f"{room}.h"
    assert header.is_file()
    run = subprocess.run(
        [os.environ.get("CC", "cc"), "-std=gnu11", "-D_GNU_SOURCE", "-fsyntax-only", "-Wall",
         "-Wextra", "-Werror", "-Wno-unused-parameter", f"-I{ROOT}", "-x", "c", "-"],
        input=f'#include "{room}/{room}.h"\n#include "{room}/{room}.h"\n'
              "int unit_is_not_empty;\n",
        capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_headers_have_one_guard_each():
    seen, wrong = {}, []
    for path in tracked(".h"):
        match = re.search(r"^#ifndef (\w+)\n#define \1$", read(path), re.M)
        if match is None:
            # Templates are included once per variant, on purpose.
            if not path.name.endswith("_tmpl.h"):
                wrong.append(f"{relative(path)} has no guard")
            continue
        if match.group(1) in seen:
            wrong.append(f"{relative(path)} and {seen[match.group(1)]} share {match.group(1)}")
        seen[match.group(1)] = relative(path)
    assert not wrong, "\n".join(wrong)


def test_no_file_outgrows_its_room():
    wrong = []
    for path in tracked(".c", ".h", ".py", ".js", ".sh", ".build"):
        lines = read(path).count("\n")
        if lines > LINES_MAX:
            wrong.append(f"{relative(path)} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_every_source_opens_with_a_comment():
    wrong = [relative(p) for p in rooms_sources() if not read(p).startswith("/*")]
    assert not wrong, "\n".join(wrong)


def test_no_path_of_a_machine_stands_in_the_tree():
    # Put together here, so that this file does not contain what it looks for.
    folders = "|".join(("work", "farm"))
    pattern = re.compile(r"(^|[^A-Za-z0-9_.])/(" + folders + r")/|/ro" + r"ot/|/tmp/bash" + r"_jobs")
    wrong = []
    for path in tracked(""):
        if path.suffix in (".gguf", ".head", ".bin", ".png", ".jsonl"):
            continue
        for number, line in enumerate(read(path).splitlines(), 1):
            if pattern.search(line):
                wrong.append(f"{relative(path)}:{number}: {line.strip()[:120]}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_open_in_the_code():
    words = "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK", "not imple" + "mented"))
    pattern = re.compile(r"\b(" + words + r")\b")
    wrong = [f"{relative(p)}:{n}" for p in tracked(".c", ".h")
             for n, line in enumerate(read(p).splitlines(), 1) if pattern.search(line)]
    assert not wrong, "\n".join(wrong)


def test_weak_memory_orders_are_explained():
    """Each atomic operation that is weaker than seq_cst has a comment near it, naming its pair."""
    order = re.compile(r"memory_order_(relaxed|acquire|release|acq_rel|consume)")
    wrong = []
    for path in rooms_sources():
        lines = read(path).splitlines()
        for i, line in enumerate(lines):
            near = lines[max(0, i - 6):i + 1]
            if order.search(line) and not any("/*" in l or l.lstrip().startswith("*")
                                              for l in near):
                wrong.append(f"{relative(path)}:{i + 1}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("script", ["deploy/quickstart", "tests/run", ".ci/run"])
def test_scripts_are_executable_and_parse(script):
    path = ROOT / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_experts_of_the_zoo_are_whole():
    import json
    zoo = ROOT / "experts" / "zoo"
    experts = json.loads(read(zoo / "zoo.json"))["experts"]
    assert len(experts) == 13
    readme = read(zoo / "README.md")
    for expert in experts:
        file = zoo / expert["adapter"]
        assert file.stat().st_size == expert["adapter_bytes"], expert["name"]
        assert file.open("rb").read(4) == b"GGUF"
        assert expert["data"]["licence"] and f"| {expert['name']} |" in readme


def test_chips_give_a_source_for_every_value():
    """Read as text: one value a line, so that no YAML library is needed."""
    value = re.compile(r"^  (\w+): \{value: ([-+.0-9e]+), source: (\w+), from: \"[^\"]+\"")
    for name in ("sn40l", "dgx-a100", "dgx-h100", "host"):
        count = 0
        section = None
        for line in read(ROOT / "conf" / "chips" / f"{name}.yaml").splitlines():
            if re.match(r"^\w+:$", line):
                section = line
            if section is None or not line.startswith("  ") or line.lstrip().startswith("#"):
                continue
            match = value.match(line)
            assert match, f"{name}: {line}"
            float(match.group(2))
            assert match.group(3) in ("published", "inferred", "guess"), f"{name}: {line}"
            count += 1
        assert count >= 20, name
