"""`make setup`: from a fresh clone to `.venv/bin/vla`. Every step is stamped; running it again does only what has changed.

Everything it makes lies in `.venv`, which is at once the Python environment, the ROS prefix and colcon's install folder:
`rm -rf .venv` forgets all. Standard library only, any Python >= 3.8 runs it; `.venv` gets the Python that fits the ROS.
Environment: TORCH (another requirement than the pinned one, e.g. TORCH='torch>=2.13'), PYTHON, pip's own PIP_* variables.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from machine import Ros, find_python, find_ros, has_gpu, problems
from progress import StepFailed, run, say

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMPS = VENV / ".setup"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# A distribution's cv_bridge and messages are compiled for its numpy 1; these pins need numpy 2.
NUMPY_2_ONLY = ("numpy", "opencv-python-headless", "pin", "coal", "eigenpy", "libcoal", "libpinocchio", "cmeel")
FOR_NUMPY_1 = ("numpy<2", "opencv-python-headless<4.12")
BUILDER_PATHS = {  # what the wheels' CMake files name -> how this Python calls it
    r"/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages/numpy/_core/include": "__import__('numpy').get_include()",
    r"/opt/python/cp\d+-cp\d+/include/python3\.\d+": "__import__('sysconfig').get_paths()['include']",
}


def main() -> int:
    """Runs the steps that are due. Returns the exit status."""
    source_again()
    ros = find_ros(VENV)
    keys = step_keys(ros)
    due = [step for step, key in keys.items() if not is_done(step, key)]
    if not due:
        return 0
    python = find_python(ros)
    missing = problems(ros, python, ROOT, installed="packages" not in due)
    if missing:
        print("\n".join(f"setup: {line}" for line in missing), file=sys.stderr)
        return 1
    actions = {
        "venv": lambda: make_venv(python, ros),
        "packages": lambda: install_packages(ros),
        "cmake": lambda: mend_cmake_paths(ros),
        "vla_msgs": lambda: build("vla_msgs", ros),
        "vla_ros": lambda: build("vla_ros", ros),
    }
    say(f"{ros}, {python}")
    try:
        for step in due:
            actions[step]()
            STAMPS.mkdir(exist_ok=True)
            (STAMPS / step).write_text(keys[step])
    except StepFailed as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    say("done: .venv/bin/vla doctor, .venv/bin/vla demo")
    return 0


def source_again() -> None:
    """Sources what .venv was made with, where this shell has no ROS: a forgotten `source` must not rebuild it with the wheels."""
    record = VENV / "ros.json"
    if "AMENT_PREFIX_PATH" in os.environ or not record.is_file():
        return
    made_with = json.loads(record.read_text())
    if made_with["kind"] == "distribution":
        os.environ.update(made_with["environment"])


def step_keys(ros: Ros) -> dict[str, str]:
    """Returns step -> hash of all that it depends on, in the order of running. A step is due again when its hash has changed."""
    names = requirement_files(ros)
    requirements = [ROOT / "requirements" / name for name in [*names, "constraints.txt"]]
    messages = [path for path in sorted((ROOT / "vla_msgs").rglob("*")) if path.is_file()]
    shared = sorted(str(path.relative_to(ROOT)) for top in ("config", "launch", "urdf") for path in (ROOT / top).rglob("*.*"))
    colcon = ROOT / "colcon_defaults.yaml"
    venv = digest(str(ros), str(ROOT))
    packages = digest(venv, os.environ.get("TORCH", ""), *requirements)
    return {
        "venv": venv,
        "packages": packages,
        "cmake": packages,
        "vla_msgs": digest(packages, colcon, *messages),
        "vla_ros": digest(packages, colcon, *shared, ROOT / "setup.py", ROOT / "setup.cfg", ROOT / "package.xml"),
    }


def digest(*parts: str | Path) -> str:
    """Returns a hash of texts and of the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        total.update(b"\0")
    return total.hexdigest()


def is_done(step: str, key: str) -> bool:
    """Whether the step ran to its end with the same inputs."""
    stamp = STAMPS / step
    return stamp.is_file() and stamp.read_text() == key


def requirement_files(ros: Ros) -> list[str]:
    """Returns the files of requirements/ that are installed with this ROS."""
    return ["base.txt", "dev.txt", *(["ros.txt"] if ros.kind == "wheels" else [])]


def make_venv(python: str, ros: Ros) -> None:
    """Creates .venv anew, seeing the system's packages where ROS comes from there; records the ROS for `vla`."""
    shutil.rmtree(VENV, ignore_errors=True)
    options = ["--system-site-packages"] if ros.kind == "distribution" else []
    run([python, "-m", "venv", *options, str(VENV)], "making .venv")
    record = {"kind": ros.kind, "distro": ros.distro, "environment": ros_environment(ros)}
    (VENV / "ros.json").write_text(json.dumps(record, indent=2) + "\n")


def ros_environment(ros: Ros) -> dict[str, str]:
    """Returns what `vla` sets later with nothing sourced: .venv before the distribution's own paths."""
    own = {"AMENT_PREFIX_PATH": str(VENV)}
    if ros.kind == "wheels":  # their bootstrap sets LD_LIBRARY_PATH in every Python of .venv
        return own
    own["LD_LIBRARY_PATH"] = str(VENV / "lib")
    names = ("AMENT_PREFIX_PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "ROS_DISTRO", "ROS_VERSION", "ROS_PYTHON_VERSION")
    return {name: os.pathsep.join(filter(None, [own.get(name), os.environ.get(name)])) for name in names if name in os.environ}


def install_packages(ros: Ros) -> None:
    """Installs the requirements under the constraints: torch first, because its wheel depends on the machine."""
    constraints = VENV / "constraints.txt"
    torch, gpu = os.environ.get("TORCH", ""), has_gpu()
    constraints.write_text(constraint_lines((ROOT / "requirements" / "constraints.txt").read_text(), ros, free_torch=bool(torch) or gpu))
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off", "-c", str(constraints)]
    if not (torch or gpu or torch_is_small(pip)):
        try:
            run([*pip, "--no-deps", "--index-url", TORCH_CPU_INDEX, "torch"], "installing torch for the CPU")
        except StepFailed:
            say(f"{TORCH_CPU_INDEX} does not answer: torch comes with several GB of CUDA")
    run([*pip, "--no-deps", torch or "torch"], "installing torch")
    files = [part for name in requirement_files(ros) for part in ("-r", str(ROOT / "requirements" / name))]
    run([*pip, *files], "installing packages")


def constraint_lines(text: str, ros: Ros, free_torch: bool) -> str:
    """Returns the constraints for this machine.

    Args:
        text: requirements/constraints.txt.
        ros: beside a distribution numpy stays at 1, and what needs numpy 2 is not pinned.
        free_torch: leave torch to the requirement (a GPU machine, or TORCH is set).
    """
    lines = [line for line in text.splitlines() if not (free_torch and line.startswith("torch=="))]
    if ros.kind == "distribution":
        lines = [line for line in lines if not re.match(rf"({'|'.join(NUMPY_2_ONLY)})(-[a-z0-9-]+)?==", line)] + [*FOR_NUMPY_1]
    return "\n".join(lines) + "\n"


def torch_is_small(pip: list[str]) -> bool:
    """Whether the configured indexes already offer the CPU build (PyPI's own wheel brings several GB of CUDA)."""
    command = [*pip, "--quiet", "--dry-run", "--no-deps", "--report", "-", "torch"]
    report = subprocess.run(command, capture_output=True, text=True, check=False)
    if report.returncode != 0:
        return True  # the real install says what is wrong
    installs = json.loads(report.stdout)["install"]
    return not installs or installs[0]["metadata"]["version"].endswith("+cpu")


def mend_cmake_paths(ros: Ros) -> None:
    """Rewrites the wheel builder's Python and numpy folders, which CMake would look for, to those of .venv."""
    if ros.kind == "distribution":
        return
    ask = "import json; print(json.dumps([" + ", ".join(BUILDER_PATHS.values()) + "]))"
    here = subprocess.run([str(VENV / "bin" / "python"), "-c", ask], capture_output=True, text=True, check=True, cwd="/").stdout
    for path in (VENV / "share").rglob("*.cmake"):
        old = new = path.read_text()
        for pattern, replacement in zip(BUILDER_PATHS, json.loads(here)):
            new = re.sub(pattern, replacement.replace("\\", r"\\"), new)
        if new != old:
            path.write_text(new)


def build(package: str, ros: Ros) -> None:
    """Builds one package with colcon into .venv. vla_ros is linked, not copied: a change of its sources needs no build."""
    prefixes = os.pathsep.join([str(VENV), *filter(None, [os.environ.get("AMENT_PREFIX_PATH") if ros.kind == "distribution" else ""])])
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(VENV / "bin"), os.environ["PATH"]]),
        "AMENT_PREFIX_PATH": prefixes,
        "CMAKE_PREFIX_PATH": prefixes,
        "COLCON_DEFAULTS_FILE": str(ROOT / "colcon_defaults.yaml"),
    }
    python = VENV / "bin" / "python"
    command = [str(VENV / "bin" / "colcon"), "--log-base", str(VENV / "log"), "build", "--packages-select", package]
    command += ["--build-base", str(VENV / "build"), "--install-base", str(VENV), "--event-handlers", "console_direct+"]
    if package == "vla_ros":
        command += ["--symlink-install"]
    else:
        command += ["--cmake-args", "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={python}"]
        shutil.rmtree(VENV / "build" / package, ignore_errors=True)  # a message that was taken away must not stay behind
    run(command, f"building {package}", environment=environment)
    if package == "vla_ros":
        link_package()


def link_package() -> None:
    """Makes .venv import the sources and find the entry points with nothing sourced; puts `vla` where one looks for it."""
    (site,) = VENV.glob("lib/python3.*/site-packages")
    (site / "vla_ros.pth").write_text(f"{ROOT}\n{VENV / 'build' / 'vla_ros'}\n")
    link = VENV / "bin" / "vla"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("..") / "lib" / "vla_ros" / "vla")


if __name__ == "__main__":
    sys.exit(main())
