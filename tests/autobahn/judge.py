"""Judges a report of the Autobahn|Testsuite: every case OK or informational, none missing."""

import collections
import json
import sys

path, expected = sys.argv[1], int(sys.argv[2])
with open(path) as file:
    agents = json.load(file)
verdicts = collections.Counter()
bad = []
for cases in agents.values():
    for case, result in cases.items():
        verdict = {result["behavior"], result["behaviorClose"]}
        verdicts[result["behavior"]] += 1
        if not verdict <= {"OK", "INFORMATIONAL"}:
            bad.append(f"{case}: {result['behavior']}, close {result['behaviorClose']}")
print("Autobahn:", ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
for line in bad:
    print("  " + line)
if bad or sum(verdicts.values()) < expected:
    sys.exit(f"Autobahn: {len(bad)} cases failed, {sum(verdicts.values())} of {expected} were run")
