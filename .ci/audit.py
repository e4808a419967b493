"""Known vulnerabilities of what is installed beside the Python that runs this, with pip-audit from a venv of its own.

Exit status 1 where one is found, else 0: where the audit can't be made (the service at osv.dev takes a network) it says
"not run" and why, for a machine without a network must still be able to test.
"""

import json
import subprocess
import sysconfig
import tempfile
import venv
from pathlib import Path

PIP_AUDIT = "pip-audit>=2.9,<3"
HOME = Path("build/audit-venv")
"""pip-audit and what it brings never mix with what is audited."""
PATIENCE = 240


def not_run(why: str) -> int:
    """Say that there was no audit; exit status 0."""
    print(f"dependency audit: not run: {why}")
    return 0


def last_line(text: str) -> str:
    """What a program said last, or that it said nothing."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def main() -> int:
    """Audit, and say what was found; returns the exit status."""
    installed = sysconfig.get_path("purelib")
    python = HOME / "bin" / "python"
    try:
        if not python.exists():
            venv.create(HOME, with_pip=True)
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIP_AUDIT],
                              capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            return not_run(f"pip-audit can't be installed ({last_line(done.stderr)})")
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            done = subprocess.run(
                [python, "-m", "pip_audit", "--path", installed, "--vulnerability-service", "osv", "--timeout", "20",
                 "--progress-spinner", "off", "--format", "json", "--output", str(report)],
                capture_output=True, text=True, check=False, timeout=PATIENCE)
            if not report.exists():
                return not_run(f"pip-audit gave no report ({last_line(done.stderr)})")
            packages = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    except subprocess.TimeoutExpired:
        return not_run(f"it did not end within {PATIENCE} s")
    found = [f"{p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'no release yet'}"
             for p in packages for v in p.get("vulns", ())]
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    print("\n".join([f"dependency audit: {len(packages) - len(skipped)} packages, {len(found)} known vulnerabilities",
                     *found, *([f"not audited: {', '.join(skipped)}"] if skipped else [])]))
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
