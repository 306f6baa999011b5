"""The short form of tests/bench/pressure, with tiny models: many experts, a quarter of their memory, 16 clients."""

import json
import os
import subprocess
import sys

from conftest import DATA, PATIENCE, ROOT, binary


def test_a_quarter_of_the_memory_changes_no_token(tmp_path):
    tiny = DATA / "tiny"
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "bench" / "pressure", tiny / "tiny-llama-f32.gguf", tiny / "lora-upper.gguf",
         tiny / "lora-psalms.gguf", "--models", "8", "--adapters", "12", "--minutes", "0.02", "--binary", binary()],
        capture_output=True, text=True, timeout=4 * PATIENCE, check=False, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout)
    print(f"\n{row}")
    assert row["experts"] == 20 and row["requests"] >= 20 and row["failed"] == row["wrong"] == row["samples_over"] == 0
    assert row["evictions"] > 0 and row["unique_bytes"] < row["bytes_if_not_shared"]
