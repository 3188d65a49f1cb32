"""The table of checks."""

import time
import traceback


class Report:
    """Prints every check as it ends and counts them."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    async def check(self, name, doing):
        """Awaits `doing`; whatever it raises fails this check and no other. Returns its result."""
        started = time.monotonic()
        try:
            result = await doing
        except Exception as error:
            self.failed += 1
            self._line(name, "FAILED", started)
            for line in str(error).splitlines() or traceback.format_exception(error):
                print(f"    {line.rstrip()}", flush=True)
            return None
        self.passed += 1
        self._line(name, "ok", started)
        return result

    def close(self):
        """Prints the closing line and returns whether all is well."""
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return self.failed == 0 and self.passed > 0

    def _line(self, name, verdict, started):
        print(f"{name:.<90} {verdict} ({time.monotonic() - started:.1f} s)", flush=True)
