"""Reading what the suite says, and holding it against the lists."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
WHITELIST = HERE / "whitelist.txt"
# Tests that only pass in the suite's own form: most are of endpoints that the specification has deprecated,
# which the modern form leaves out.
OWN_FORM = HERE / "whitelist-own-form.txt"
EXPECTED_FAILURES = HERE / "expected-failures.txt"

LINE = re.compile(r"(?P<not>not )?ok (?P<number>\d+) (?P<name>.*)")


@dataclass
class Result:
    """What became of a test."""

    name: str
    file: str
    outcome: str
    reason: list = field(default_factory=list)

    @property
    def area(self):
        """The folder, or the file, that the test is in."""
        return self.file.split("/")[1].removesuffix(".pl")


def read(tap):
    """The results in a file that the suite wrote."""
    results, file = [], ""
    for line in tap.read_text(errors="replace").splitlines():
        if line.startswith("# file: "):
            file = line.removeprefix("# file: ")
        elif match := LINE.match(line):
            name, _, skipped = match["name"].partition(" # skip ")
            name = re.sub(r" \(\d+ subtests\)$", "", name)
            outcome = "skipped" if skipped else "failed" if match["not"] else "passed"
            results.append(Result(name, file, outcome, [skipped] if skipped else []))
        elif line.startswith("# ") and results and results[-1].outcome == "failed":
            if not line.startswith(("# Started: ", "# Ended: ")):
                results[-1].reason.append(line.removeprefix("# "))
    return results


def names(path):
    """The tests that a list names; what stands behind ` # ` is for people."""
    if not path.exists():
        return []
    lines = (line.split(" # ")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def tell(results, form, complete, status=None):
    """Prints the summary; 0 if the lists are true."""
    listed = set(names(WHITELIST)) | (set(names(OWN_FORM)) if form == "own" else set())
    excused = set(names(EXPECTED_FAILURES))
    outcomes = by_name(results)
    areas(results)
    if status:
        status.write_text(failures(results, excused))
    broken = [name for name in sorted(listed & outcomes.keys()) if outcomes[name] != "passed"]
    gone = sorted(listed - outcomes.keys()) if complete else []
    new = [name for name, outcome in sorted(outcomes.items()) if outcome == "passed" and name not in listed]
    section("listed, but not passed", [f"{name} ({outcomes[name]})" for name in broken])
    section("listed, but not run", gone)
    section("passed, but not listed", new)
    stale = sorted(name for name in excused if outcomes.get(name) == "passed")
    section("expected to fail, but passed", stale)
    return 1 if broken or gone or new or stale else 0


def by_name(results):
    """The outcome by name; of tests with the same name the worst."""
    worst = ["passed", "skipped", "failed"]
    outcomes = {}
    for result in results:
        before = outcomes.get(result.name, "passed")
        outcomes[result.name] = max(before, result.outcome, key=worst.index)
    return outcomes


def areas(results):
    """Prints how many tests of each area passed."""
    table = defaultdict(lambda: defaultdict(int))
    for result in results:
        for row in (result.area, "total"):
            table[row][result.outcome] += 1
    table["total"] = table.pop("total", {})
    print(f"{'area':<24}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for area, counts in table.items():
        print(f"{area:<24}{counts['passed']:>8}{counts['failed']:>8}{counts['skipped']:>9}")
    print()


def section(title, lines):
    """Prints a list, if there is anything in it."""
    if lines:
        print(f"{title}: {len(lines)}")
        for line in lines:
            print(f"    {line}")


def failures(results, excused):
    """What failed and why, by file."""
    text, file = [], None
    for result in sorted(results, key=lambda result: result.file):
        if result.outcome == "passed" or result.name in excused:
            continue
        if result.file != file:
            file = result.file
            text.append(f"\n## {file}\n")
        reason = " | ".join(line for line in result.reason[:4])[:400]
        text.append(f"- {result.name} ({result.outcome}): {reason}")
    return "\n".join(text) + "\n"


def update_whitelist(results, form):
    """Lists what passed and was not listed."""
    passed = {name for name, outcome in by_name(results).items() if outcome == "passed"}
    both, own = set(names(WHITELIST)), set(names(OWN_FORM))
    if form == "modern":
        both |= passed
    else:
        own |= passed
    write(WHITELIST, both)
    write(OWN_FORM, own - both)


def write(path, names):
    """Writes a list, sorted."""
    path.write_text("".join(f"{name}\n" for name in sorted(names)))
