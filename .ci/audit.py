"""Known vulnerabilities of the packages that constraints.txt pins. Arguments go to pip-audit, e.g. --ignore-vuln ID.

Exit code 1 where one is known. That no service answers is said, and is no failure.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINNED = Path(__file__).parents[1] / "constraints.txt"
SERVICES = ("pypi", "osv")  # asked in turn, until one knows packages


def ask(service: str, options: list[str]) -> tuple[list[dict[str, Any]], str]:
    """What is known of each package, and why nothing is where the service did not answer."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--requirement", str(PINNED)]
    command += ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)["dependencies"], ""
    except ValueError:
        return [], (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def main() -> int:
    for service in SERVICES:
        packages, reason = ask(service, sys.argv[1:])
        known = [package for package in packages if "skip_reason" not in package]
        if not known:
            print(
                f"audit: {service} has not audited anything: {reason or f'it knows none of {len(packages)} packages'}"
            )
            continue
        unknown = [package["name"] for package in packages if "skip_reason" in package]
        if unknown:
            print(f"audit: {service} does not know {', '.join(unknown)}")
        found = [(package, flaw) for package in known for flaw in package["vulns"]]
        for package, flaw in found:
            fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
            print(f"audit: {package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
        print(f"audit: {len(found)} known vulnerabilities in {len(known)} packages, by {service}")
        return 1 if found else 0
    print("audit: no service of vulnerabilities could be asked, so NOTHING was audited")
    return 0


if __name__ == "__main__":
    sys.exit(main())
