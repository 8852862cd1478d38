"""Import every leaf of the installed CoLLiE alone, each in a fresh interpreter; a smoke test of an installation."""

import subprocess
import sys
from importlib.metadata import files

PACKAGES = ("collie-config", "collie-models", "collie-train", "collie-eval", "collie-tui")


def leaves(package: str) -> list[str]:
    """The leaves that an installed package brings: each has a py.typed beside its __init__.py."""
    found = [file.parent for file in files(package) or [] if file.name == "py.typed"]
    return sorted(".".join(folder.parts) for folder in found)


if __name__ == "__main__":
    broken = 0
    for package in PACKAGES:
        names = leaves(package)
        if not names:
            raise SystemExit(f"{package} has no leaf")
        for name in names:
            run = subprocess.run([sys.executable, "-P", "-c", f"import {name}"], capture_output=True, text=True)
            broken += run.returncode != 0
            print(f"{package}: import {name}: {'ok' if run.returncode == 0 else run.stderr.strip()}", flush=True)
    sys.exit(1 if broken else 0)
