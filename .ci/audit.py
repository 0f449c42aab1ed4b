"""pip-audit over requirements.lock, in one sentence: a known vulnerability fails, a database out of reach does not.

Nor does it help that pip-audit is not there or cannot read the lock: that fails, too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
WITHIN = 60.0
#: What it says when not the database is the reason, but something here.
OURS = re.compile(r"No module named pip_audit|^usage: |^ERROR:pip_audit\._cli:.*requirement", re.MULTILINE)


def judged(report: str, said: str) -> tuple[int, str]:
    """The exit code and what to say, of pip-audit's report (JSON) and of what it wrote to standard error."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (said.strip().splitlines() or ["it said nothing"])[-1]
        if OURS.search(said):
            return 1, f"pip-audit could not be run: {reason[:200]}"
        return 0, f"pip-audit: NOT AUDITED, the database of vulnerabilities could not be asked: {reason[:200]}"
    found = [
        f"  {package['name']} {package['version']}: {each['id']}, fixed in {', '.join(each['fix_versions']) or '–'}"
        for package in packages
        for each in package.get("vulns", [])
    ]
    unknown = sum("skip_reason" in package for package in packages)
    if found:
        return 1, "\n".join([f"pip-audit: {len(found)} known vulnerabilities in {LOCK.name}:", *found])
    if unknown == len(packages):
        return 0, f"pip-audit: NOT AUDITED, the database of vulnerabilities knows none of the {unknown} packages"
    rest = f"; {unknown} could not be audited" if unknown else ""
    return 0, f"pip-audit: no known vulnerability in {len(packages) - unknown} packages{rest}"


def main() -> int:
    """Run pip-audit."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--timeout", "5", "--requirement", str(LOCK)],
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        code, sentence = judged(done.stdout, done.stderr)
    except subprocess.TimeoutExpired:
        code, sentence = judged("", f"no answer within {WITHIN:g} s")
    print(sentence, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
