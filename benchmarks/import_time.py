"""What importing dropkit costs on top of `import torch`: the median over fresh interpreters, in milliseconds."""

import statistics
import subprocess
import sys

BAR_MS = 50.0
ROUNDS = 7
STATEMENTS = ("import dropkit", "import dropkit.random", "import dropkit.functional", "import dropkit.nn")


def milliseconds(statement: str, before: str) -> float:
    """Time `statement` in a fresh interpreter, after the statement `before`."""
    code = f"import time; {before}; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return 1e3 * float(result.stdout)


def main() -> None:
    """Print a line for each import, the bar beside it."""
    cases = [("import torch", "pass"), *((statement, "import torch") for statement in STATEMENTS)]
    rounds = [[milliseconds(*case) for case in cases] for _ in range(ROUNDS + 1)][1:]  # the first one fills caches
    print(f"median of {ROUNDS} fresh interpreters; the bar for dropkit is {BAR_MS:g} ms above torch")
    for (statement, before), times in zip(cases, zip(*rounds, strict=True), strict=True):
        median = statistics.median(times)
        verdict = "" if before == "pass" else "  ok" if median < BAR_MS else "  OVER THE BAR"
        print(f"  {statement:26} {median:8.1f} ms  (from {min(times):.1f} to {max(times):.1f}){verdict}")


if __name__ == "__main__":
    main()
