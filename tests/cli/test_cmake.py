"""The CMake entry, as Triton's build and packagers call it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

CONSUMER = """
cmake_minimum_required(VERSION 3.19)
project(consumer LANGUAGES NONE)
find_package(TritonRewindBackend REQUIRED)
get_target_property(library TritonRewindBackend::triton-rewind-backend IMPORTED_LOCATION)
file(WRITE "${CMAKE_BINARY_DIR}/found" "${TritonRewindBackend_BACKEND_DIRECTORY}\\n${library}\\n")
"""


def cmake(*arguments: object, target: Path | None = None):
    program = Path(sys.executable).with_name("cmake")
    environment = os.environ | ({"CARGO_TARGET_DIR": str(target)} if target else {})
    done = subprocess.run([program, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_installs_the_backend_where_triton_looks(tmp_path, cargo_target):
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    cmake("-S", PROJECT, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}", target=cargo_target)
    cmake("--build", build, "--target", "install", target=cargo_target)
    library = prefix / "backends" / "rewind" / "libtriton_rewind.so"
    assert library.read_bytes()[:4] == b"\x7fELF"

    consumer = tmp_path / "consumer"
    consumer.mkdir()
    (consumer / "CMakeLists.txt").write_text(CONSUMER)
    cmake("-S", consumer, "-B", tmp_path / "out", f"-DCMAKE_PREFIX_PATH={prefix}")
    found = (tmp_path / "out" / "found").read_text().splitlines()
    assert [Path(line).resolve() for line in found] == [(prefix / "backends").resolve(), library.resolve()]
