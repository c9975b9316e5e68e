"""Judges reports of the Autobahn|Testsuite: every case OK or informational, none missing.

usage: judge.py NAME EXPECTED_CASES REPORT_FOLDER [NAME EXPECTED_CASES REPORT_FOLDER ...]
"""

import collections
import json
import sys


def judge(name, expected, folder):
    """Prints a line of the table, and returns what is wrong."""
    try:
        with open(f"{folder}/index.json") as file:
            agents = json.load(file)
    except (OSError, ValueError) as error:
        print(f"{name:<12}{'-':>7}")
        return [f"{name}: there is no report: {error}"]
    verdicts = collections.Counter()
    bad = []
    for cases in agents.values():
        for case, result in cases.items():
            verdict = {result["behavior"], result["behaviorClose"]}
            if verdict <= {"OK", "INFORMATIONAL"}:
                verdicts[result["behavior"]] += 1
            else:
                bad.append(f"{name}, case {case}: {result['behavior']}, close {result['behaviorClose']}")
    run = verdicts.total() + len(bad)
    print(f"{name:<12}{run:>7}{verdicts['OK']:>7}{verdicts['INFORMATIONAL']:>15}{len(bad):>8}")
    if run != expected:
        bad.append(f"{name}: {run} of {expected} cases were run")
    return bad


arguments = sys.argv[1:]
print(f"{'Autobahn':<12}{'cases':>7}{'OK':>7}{'informational':>15}{'failed':>8}")
wrong = []
for at in range(0, len(arguments), 3):
    name, expected, folder = arguments[at : at + 3]
    wrong += judge(name, int(expected), folder)
sys.exit("\n".join(wrong) or 0)
