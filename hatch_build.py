"""The build of ``nexus._kernel`` into the wheel, by cargo where it is there.

Without a toolchain, or without the registry, the wheel is a plain Python one, and says in
``nexus/_kernel_missing.txt`` why. ``NEXUS_BUILD_KERNEL`` chooses: ``auto``; ``require``, which
fails instead; ``skip``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "NEXUS_BUILD_KERNEL"
LIBRARIES = ("libnexus_kernel.so", "libnexus_kernel.dylib")
EXTENSION = "_kernel.abi3.so"
REASON = "_kernel_missing.txt"
LONGEST_REASON = 500


class KernelBuildHook(BuildHookInterface[Any]):
    """Adds the extension module, or the reason for its absence, to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get(VARIABLE, "auto")
        if wanted not in ("auto", "require", "skip"):
            raise SystemExit(f"{VARIABLE} is {wanted!r}, not auto, require or skip")
        crate = Path(self.root, "rust", "nexus_kernel")
        library, reason = None, f"{VARIABLE}=skip at the build"
        if wanted != "skip":
            library, reason = built(crate)
        if library is None and wanted == "require":
            raise SystemExit(f"nexus._kernel was not built: {reason}")
        folder = Path(self.root, "src", "nexus") if version == "editable" else crate / "target"
        folder.mkdir(exist_ok=True)
        for name in (EXTENSION, REASON):
            (folder / name).unlink(missing_ok=True)
        if library is None:
            self.app.display_warning(f"nexus._kernel was not built: {reason}")
            name = REASON
            (folder / name).write_text(reason + "\n")
        else:
            name = EXTENSION
            shutil.copyfile(library, folder / name)
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{platform}"
        if version != "editable":
            build_data["force_include"][str(folder / name)] = f"nexus/{name}"


def built(crate: Path) -> tuple[Path | None, str]:
    """Return the library that cargo made, or None and the reason."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return None, "cargo was not found at the build"
    command = [cargo, "build", "--release", "--locked", "--lib", "--features", "python"]
    environment = os.environ | {"PYO3_PYTHON": sys.executable}
    environment["CARGO_TARGET_DIR"] = str(crate / "target")
    done = subprocess.run(
        command, cwd=crate, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None, "cargo failed: " + " ".join(done.stderr.split())[-LONGEST_REASON:]
    libraries = [crate / "target" / "release" / name for name in LIBRARIES]
    for library in libraries:
        if library.exists():
            return library, ""
    return None, "cargo made no library for this platform"
