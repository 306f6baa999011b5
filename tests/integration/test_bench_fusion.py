"""`switchyard bench fusion`: every workload in every way, with the fields the docs name. What the ratios
are is not asserted: a test machine is shared."""
import json
import shutil

from conftest import command

WORKLOADS = {"elementwise": {"off", "on", "hand"}, "decoder_layer": {"off", "on", "hand"},
             "q1": {"off", "on", "hand", "plain"}, "q6": {"off", "on", "hand", "plain"},
             "sampler": {"off", "on", "hand"}}


def bench(folder, *arguments):
    return command(folder, "bench", "fusion", *arguments)


def test_prints_layout_by_fusion_for_every_workload(tmp_path):
    code, out, err = bench(tmp_path, "--json", "--rows", "5000", "--reps", "1", "--no-sweep")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    rows = [line for line in lines if "workload" in line]
    if shutil.which("cc"):
        assert {r["of"] for r in rows if r["workload"] == "native"} == set(WORKLOADS)
    for workload, ways in WORKLOADS.items():
        layouts = {"columns"} if workload == "sampler" else {"rows", "columns"}
        seen = {(r["layout"], r["fusion"]) for r in rows if r["workload"] == workload}
        assert seen >= {(layout, way) for layout in layouts for way in ways}
    for row in rows:
        assert row["ms"] > 0 and row["over_hand_c"] > 0
        if row["fusion"] in ("off", "on"):
            assert row["fused_over_unfused"] > 0
    both = [r for r in rows if (r["workload"], r["layout"], r["fusion"]) == ("q6", "columns", "on")]
    assert both[0]["published"]["value"] == 3.22
    assert [line["goal"] for line in lines if "goal" in line]


def test_a_sweep_and_one_workload_only(tmp_path):
    code, out, err = bench(tmp_path, "--json", "--reps", "1", "--sweep", "--workload", "q6")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines() if "workload" in line]
    assert {r.get("of", r["workload"]) for r in rows} == {"q6"} and all(r["sweep"] for r in rows)
    assert len({r["n"] for r in rows}) > 3


def test_what_does_not_exist_is_refused_with_what_does(tmp_path):
    code, out, err = bench(tmp_path, "--workload", "q7")
    assert code == 2 and "q7" in err and ("q6" in err or "q1" in err)
