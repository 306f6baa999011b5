"""Counts what the test runners report.

tally.py FILE...            testlog.json of meson and JUnit XML of pytest: one line each, then the
                            sum as `N passed, N failed[, N skipped]`; exit 1 on a failure or no test
tally.py --closing FILE     the closing lines of the cmocka programs in a testlog.json
"""

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree

PASSED = re.compile(r"\[  PASSED  \] (\d+) test\(s\)")
FAILED = re.compile(r"\[  FAILED  \] (\d+) test\(s\)")
SKIPPED = re.compile(r"\[  SKIPPED \] (\d+) test\(s\)")
CLOSING = re.compile(r"^\[(==========|  PASSED  |  FAILED  |  SKIPPED )\] \d+ test\(s\).*", re.M)
GOOD = ("OK", "EXPECTEDFAIL")


def read_meson(path):
    with open(path, encoding="utf-8", errors="replace") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def output_of(program):
    return program.get("stdout", "") + "\n" + program.get("stderr", "")


def count_program(program):
    """(passed, failed, skipped) of one program; a crash counts as one failure."""
    text = output_of(program)

    def total(pattern):
        return sum(int(n) for n in pattern.findall(text))

    passed, failed, skipped = total(PASSED), total(FAILED), total(SKIPPED)
    if program["result"] == "SKIP" and not passed and not failed:
        return 0, 0, max(skipped, 1)
    if program["result"] not in GOOD + ("SKIP",):
        return passed, max(failed, 1), skipped
    if passed + failed + skipped == 0:
        passed = 1  # a program of another kind that ended well
    return passed, failed, skipped


def count_meson(path):
    counts = [count_program(program) for program in read_meson(path)]
    return tuple(sum(column) for column in zip(*counts)) if counts else (0, 0, 0)


def count_junit(path):
    passed = failed = skipped = 0
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        over = int(suite.get("skipped", 0))
        passed += max(int(suite.get("tests", 0)) - bad - over, 0)
        failed += bad
        skipped += over
    return passed, failed, skipped


def print_closing(path):
    for program in read_meson(path):
        lines = [match.group(0) for match in CLOSING.finditer(output_of(program))]
        if lines:
            print(f"{program['name']}:")
            print("\n".join(lines))


def summary(counts):
    passed, failed, skipped = counts
    return f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")


def main(arguments):
    if arguments[:1] == ["--closing"]:
        print_closing(arguments[1])
        return 0
    total = (0, 0, 0)
    for path in sorted(arguments):
        counts = count_meson(path) if path.endswith(".json") else count_junit(path)
        print(f"{os.path.splitext(os.path.basename(path))[0]:24}{summary(counts)}")
        total = tuple(a + b for a, b in zip(total, counts))
    print()
    print(summary(total))
    return 1 if total[1] or not total[0] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
