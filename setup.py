"""Build the native core, ``falcon_fast._core``; everything else is declared in pyproject.toml.

Switches, read from the environment (``1`` or ``0``, by default 0):

``FALCON_BUILD_TRACE``
    Line tracing for coverage. The C file is then put beside ``_core.pyx``, where the coverage
    plugin looks for it.
``FALCON_BUILD_DEBUG``
    Checks of bounds, negative indices, None and division, ``-O1 -g``, C assertions on. Cython's
    own check of overflow is not among them: it computes differences of pointers in bytes.
    Overflow is found by ``FALCON_BUILD_SANITIZE=undefined``.
``FALCON_BUILD_SANITIZE``
    A list for the compiler's ``-fsanitize``, for example ``address,undefined``.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

PACKAGE = Path("falcon_fast")

RUNTIME_ZLIB = "-l:libz.so.1"
"""The library as programs find it, without the link that a development package adds."""

NO_ZLIB = (
    "falcon_fast cannot be built: neither zlib.h nor the library libz.so.1 was found. They are in "
    "zlib1g-dev (Debian, Ubuntu), zlib-devel (Fedora, RHEL), zlib-dev (Alpine), or Xcode's command "
    "line tools (macOS)."
)

# What a debug build turns round, whatever the head of the .pyx says.
DEBUG_DIRECTIVES = {
    "boundscheck": True,
    "wraparound": True,
    "initializedcheck": True,
    "nonecheck": True,
    "cdivision": False,
}


def switch(name: str) -> bool:
    """Read a build switch; a misspelt value stops the build instead of being taken as "off"."""
    value = os.environ.get(name, "0")
    if value not in {"0", "1"}:
        raise SystemExit(f"{name} must be 0 or 1, not {value!r}")
    return value == "1"


def sanitizers() -> list[str]:
    """Return the compiler's and linker's options for FALCON_BUILD_SANITIZE."""
    value = os.environ.get("FALCON_BUILD_SANITIZE", "")
    if not value:
        return []
    if not re.fullmatch(r"[a-z]+(?:,[a-z]+)*", value):
        raise SystemExit(f"FALCON_BUILD_SANITIZE must be a list such as address, not {value!r}")
    # CPython's own flags define overflow of signed numbers, which would hide it.
    return [f"-fsanitize={value}", "-fno-wrapv", "-fno-omit-frame-pointer", "-g"]


TRACE = switch("FALCON_BUILD_TRACE")
DEBUG = switch("FALCON_BUILD_DEBUG")
SANITIZE = sanitizers()


def native_files() -> list[str]:
    """List what the extension is built from, apart from ``_core.pyx`` itself."""
    return sorted(str(path) for kind in ("*.pxi", "*.pxd", "*.h") for path in PACKAGE.glob(kind))


class BuildCore(build_ext):
    """Cython's own command with the switches applied and no C file left in the package."""

    def initialize_options(self) -> None:
        """Set the options here, since an editable install resets those given to setup()."""
        super().initialize_options()
        self.cython_c_in_temp = not TRACE
        self.cython_directives = {
            **(DEBUG_DIRECTIVES if DEBUG else {}),
            **({"linetrace": True} if TRACE else {}),
        }

    def build_extensions(self) -> None:
        """Find zlib before anything else is tried.

        A machine with a Python and a compiler has the library, but maybe not the header that
        belongs to it: then the core declares by itself what it uses, and links with the library
        under the name it has at run time.
        """
        if not self._can_build("#include <zlib.h>", ["-lz"]):
            declared = (PACKAGE / "_zlib.h").resolve()
            if not self._can_build(f'#include "{declared}"', [RUNTIME_ZLIB]):
                raise SystemExit(NO_ZLIB)
            for ext in self.extensions:
                ext.define_macros.append(("FALCON_OWN_ZLIB_H", "1"))
                ext.libraries.remove("z")
                ext.extra_link_args.append(RUNTIME_ZLIB)
        super().build_extensions()

    def _can_build(self, include: str, libraries: list[str]) -> bool:
        """Compile and link a program that asks zlib for its version."""
        probe = Path(self.build_temp) / "zlib_probe.c"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text(f"{include}\nint main(void) {{ return zlibVersion() == 0; }}\n")
        try:
            objects = self.compiler.compile([str(probe)])
            self.compiler.link_executable(
                objects, str(probe.with_suffix("")), extra_postargs=libraries
            )
        except (CompileError, LinkError):
            return False
        return True

    def build_extension(self, ext: Extension) -> None:
        """Build the extension, in a debug build from a copy with a changed head.

        Args:
            ext: the one extension of this package.
        """
        if DEBUG:
            # Directives in a file's head win over those handed to the compiler, so the copy loses
            # the ones that the debug build decides.
            copy = Path(self.build_temp) / "debug" / PACKAGE
            copy.mkdir(parents=True, exist_ok=True)
            for source in [*ext.sources, *native_files(), str(PACKAGE / "__init__.py")]:
                shutil.copy(source, copy)
            core = copy / "_core.pyx"
            names = "|".join(DEBUG_DIRECTIVES)
            head = re.compile(rf"(?m)^#\s*cython\s*:.*\b(?:{names})\s*=.*$")
            text = core.read_text(encoding="utf-8")
            for line in head.findall(text):
                kept = [
                    part
                    for part in line.split(":", 1)[1].split(",")
                    if part.split("=")[0].strip() not in DEBUG_DIRECTIVES
                ]
                text = text.replace(line, f"# cython: {','.join(kept)}" if kept else "#")
            core.write_text(text, encoding="utf-8")
            ext.sources = [str(core)]
            ext.include_dirs = [str(copy)]
        super().build_extension(ext)


def core() -> Extension:
    """Describe the extension with the switches applied."""
    macros: list[tuple[str, str | None]] = []
    if TRACE:
        # Coverage's tracer listens to the tracing calls of old, not to sys.monitoring.
        macros += [
            ("CYTHON_TRACE", "1"),
            ("CYTHON_TRACE_NOGIL", "1"),
            ("CYTHON_USE_SYS_MONITORING", "0"),
        ]
    return Extension(
        "falcon_fast._core",
        sources=[str(PACKAGE / "_core.pyx")],
        depends=native_files(),
        include_dirs=[str(PACKAGE)],
        define_macros=macros,
        libraries=["z"],
        undef_macros=["NDEBUG"] if DEBUG else [],
        extra_compile_args=[*(["-O1", "-g"] if DEBUG else ["-O3", "-g0"]), *SANITIZE],
        extra_link_args=list(SANITIZE),
    )


setup(ext_modules=[core()], cmdclass={"build_ext": BuildCore})
