"""An nvcc whose machine code runs on the GPU that is not there: the text of each kernel, compiled
by g++ for the emulator; what stands for the cubin is the path of that library.

Run as a program it takes nvcc's command line as ours writes it, and says of every kernel what
ptxas would: `$CUDACXX` may name it. It needs nothing but Python and g++.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.emulator.ptx import KERNEL, translate  # noqa: E402

TOOLKIT = ROOT / "tests" / "emulator" / "toolkit"
SOURCES = Path(__file__).parent / "fake_cuda"
FOLDER = Path(tempfile.gettempdir(), f"lbcompiler-fake-cuda-{os.getuid()}")
RELEASE = "13.0"
LAUNCH = """
template <class... P, size_t... I>
inline void emulated_call(void (*kernel)(P...), void** a, std::index_sequence<I...>) {
  kernel(*(std::decay_t<P>*)a[I]...);
}
template <class... P>
inline int emulated_launch(const unsigned* s, size_t shared, void** a, void (*kernel)(P...)) {
  try {
    emulator::run_grid(dim3(s[0], s[1], s[2]), dim3(s[3], s[4], s[5]), shared, [=] {
      emulated_call(kernel, a, std::index_sequence_for<P...>());
    });
  } catch (const std::exception& error) {
    fprintf(stderr, "emulator: %s\\n", error.what());
    return 1;
  }
  return 0;
}
template <class... P>
inline const size_t* emulated_sizes(void (*)(P...)) {
  static const size_t sizes[] = {sizeof(std::decay_t<P>)..., 0};
  return sizes;
}
"""


def image_of(texts: dict[str, str]) -> bytes:
    """What stands for the cubin of these kernels, by name: the path of their emulation."""
    return str(_kernels(texts)).encode() + b"\0"


def program() -> Path:
    """An nvcc to be named in `$CUDACXX`."""
    text = f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n'
    path = FOLDER / hashlib.sha256(text.encode()).hexdigest()[:24] / "nvcc"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as made:
            made.write(text)
        Path(made.name).chmod(0o755)
        Path(made.name).rename(path)
    return path


def version() -> str:
    """Of the emulator: a cubin is the same only from the same one."""
    texts = [*_headers(), Path(__file__).read_bytes(), (SOURCES / "driver.cpp").read_bytes()]
    number = int(hashlib.sha256(b"".join(texts)).hexdigest()[:12], 16)
    return f"{RELEASE}.{number}"


def compile_command(folder: Path | str, name: str, *arguments: Path | str) -> None:
    """g++ writes `name` into a folder. Raises RuntimeError."""
    command = ["g++", "-O1", "-w", "-shared", "-fPIC", "-std=c++17", *map(str, arguments)]
    done = subprocess.run(
        [*command, "-o", f"{folder}/{name}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"g++ does not take it: {done.stderr[:4000]}")


def move(made: str, folder: Path) -> None:
    """What was made, under its name; another process may have been faster."""
    if not folder.exists():
        kept = Path(f"{made}.kept")
        Path(made).rename(kept)
        Path(made).mkdir()  # for the context that removes it
        try:
            kept.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def _headers() -> list[bytes]:
    return [path.read_bytes() for root in (TOOLKIT, SOURCES) for path in sorted(root.rglob("*.h"))]


def _kernels(texts: dict[str, str]) -> Path:
    """The library of all kernels: each text in a namespace, for helpers have the same names."""
    body = "".join(
        f"namespace text{i} {{\n{_without_includes(translate(text))}\n}}\n"
        f'extern "C" int launch_{name}(const unsigned* s, size_t shared, void** a) '
        f"{{ return emulated_launch(s, shared, a, text{i}::{name}); }}\n"
        f'extern "C" const size_t* sizes_{name}() {{ return emulated_sizes(text{i}::{name}); }}\n'
        for i, (name, text) in enumerate(texts.items())
    )
    source = f'#include "language.h"\n{LAUNCH}{body}'
    digest = hashlib.sha256(b"".join([source.encode(), *_headers()])).hexdigest()
    folder = FOLDER / digest[:24]
    if not folder.exists():
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as made:
            (path := Path(made, "kernels.cpp")).write_text(source)
            compile_command(made, "kernels.so", f"-I{TOOLKIT}", f"-I{SOURCES}", path)
            move(made, folder)
    return folder / "kernels.so"


def _without_includes(text: str) -> str:
    return re.sub(r"^\s*#\s*include.*$", "", text, flags=re.MULTILINE)


def main(arguments: list[str]) -> None:
    if "--version" in arguments:
        print(f"an nvcc for the emulated GPU, release {RELEASE}, V{version()}")
        return
    text = Path(arguments[-1]).read_text()
    names = [found.group(1) for found in KERNEL.finditer(text)]
    Path(arguments[arguments.index("-o") + 1]).write_bytes(image_of(dict.fromkeys(names, text)))
    for name in names:
        print(f"ptxas info    : Function properties for {name}", file=sys.stderr)
        print("    0 bytes spill stores, 0 bytes spill loads", file=sys.stderr)
        print("ptxas info    : Used 32 registers", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
