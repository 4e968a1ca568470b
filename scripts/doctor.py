"""Say what this machine offers for training, and what to do about anything that is missing.

python scripts/doctor.py            one line for each check; exit code 1 when training cannot work
python scripts/doctor.py --json     the same as JSON (json=true also works)
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # it works where nothing is installed

from worldmodel import progress
from worldmodel.entry import HELP, enter
from worldmodel.machine import memory_bytes, processor

GIB = 2**30
REINSTALL = "run `make setup`; if that changes nothing, delete .venv and run it again"
RENDER_TIMEOUT_S = 180

PYGAME_PROBE = """
import os, time
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
import gymnasium
env = gymnasium.make("Pendulum-v1", render_mode="rgb_array")
env.reset(seed=0)
start = time.perf_counter()
frame = env.render()
ms = 1000 * (time.perf_counter() - start)
assert frame.std() > 0, "the frame has only one colour"
print(f"Pendulum-v1 drew {frame.shape} in {ms:.0f} ms")
"""

GL_PROBE = """
import time
from worldmodel.envs.rendering import choose_backend
backend = choose_backend()
from dm_control import suite
env = suite.load("walker", "walk", task_kwargs={"random": 0})
env.physics.render(64, 64)
start = time.perf_counter()
frame = env.physics.render(64, 64)
ms = 1000 * (time.perf_counter() - start)
assert frame.std() > 0, "the frame has only one colour"
print(f"{backend}: walker drew {frame.shape} in {ms:.0f} ms")
"""


class Level(StrEnum):
    """How bad a finding is: FAIL is for what training cannot do without."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it is, and what to do about it."""

    name: str
    level: Level
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Package:
    """A distribution by its name on PyPI, and what is lost without it."""

    name: str
    needed_for: str
    required: bool = True
    install: str = REINSTALL


OFFLINE = 'pip install -c constraints.txt -e ".[offline]"'
RECORDINGS = (("minari", "Minari"), ("h5py", "HDF5"), ("pyarrow", "LeRobot and imitation"))
PACKAGES = (
    Package("worldmodel", "everything"),
    Package("torch", "every model"),
    Package("numpy", "every array"),
    Package("gymnasium", "every environment"),
    Package("opencv-python-headless", "resizing images"),
    Package("hydra-core", "the configuration"),
    Package("tensorboard", "the training curves"),
    Package("mujoco", "dm_control tasks", required=False),
    Package(
        "dm-control",
        "dm_control tasks",
        required=False,
        install="run `make setup` (on Python 3.13 see docs/INSTALL.md)",
    ),
    Package(
        "ale-py",
        "Atari games",
        required=False,
        install='pip install -c constraints.txt -e ".[atari]"',
    ),
    *(
        Package(name, what, False, f'pip install -c constraints.txt -e ".[{extra}]"')
        for name, what, extra in (
            ("cma", "agent=world_models", "cma"),
            ("box2d", "CarRacing", "carracing"),
        )
    ),
    *(Package(name, f"recordings of {what}", False, OFFLINE) for name, what in RECORDINGS),
)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Is this interpreter one that the package supports?"""
    detail = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    if (3, 11) <= version < (3, 14):
        return Check("python", Level.OK, detail)
    return Check("python", Level.FAIL, detail, "use Python 3.11 to 3.13: make PYTHON=... setup")


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_package(
    package: Package, version_of: Callable[[str], str | None] = installed_version
) -> Check:
    """Is the package there? FAIL only if training needs it."""
    version = version_of(package.name)
    if version is not None:
        return Check(package.name, Level.OK, version)
    level = Level.FAIL if package.required else Level.WARN
    return Check(
        package.name, level, f"not installed: needed for {package.needed_for}", package.install
    )


def check_mujoco_pair(version_of: Callable[[str], str | None] = installed_version) -> Check | None:
    """dm_control 1.0.50 cannot import its tasks with mujoco 4; None where both fit."""
    mujoco, dm_control = version_of("mujoco"), version_of("dm-control")
    if mujoco is None or dm_control is None or int(mujoco.split(".")[0]) < 4:
        return None
    detail = f"mujoco {mujoco} does not fit dm_control {dm_control}"
    return Check("mujoco with dm_control", Level.WARN, detail, REINSTALL)


def check_cpu() -> Check:
    """The processor, the cores that this process may use, and torch's threads."""
    model, cores = processor()
    try:
        import torch
    except ImportError as error:
        return Check("cpu", Level.FAIL, f"{model}; torch cannot be imported: {error}", REINSTALL)
    return Check("cpu", Level.OK, f"{model}, {cores} cores, {torch.get_num_threads()} threads")


def check_gpus(driver_seen: bool | None = None) -> list[Check]:
    """CUDA devices with memory and bfloat16, Apple's MPS, or a word on why there is none."""
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        return [_cuda_device(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [Check("gpu", Level.OK, "Apple MPS")]
    if driver_seen is None:
        driver_seen = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    if not driver_seen:
        return [Check("gpu", Level.OK, "none; training runs on the CPU")]
    if torch.version.cuda is None:
        advice = "install the CUDA build of the same torch version: pytorch.org/get-started"
        detail = f"an NVIDIA driver, but torch {torch.__version__} is built without CUDA"
    else:
        advice = "compare `nvidia-smi` with torch's CUDA version; the driver may be too old"
        detail = f"an NVIDIA driver, but torch (CUDA {torch.version.cuda}) finds no device"
    return [Check("gpu", Level.WARN, detail, advice)]


def _cuda_device(index: int) -> Check:
    """One CUDA device: name, memory, bfloat16."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
    detail = (
        f"{properties.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {bf16} bfloat16, "
        f"CUDA {torch.version.cuda}"
    )
    if free < 2 * GIB:
        advice = "close what else runs on the device (`nvidia-smi` lists it), or set device=cpu"
        return Check(f"cuda:{index}", Level.WARN, detail, advice)
    return Check(f"cuda:{index}", Level.OK, detail)


def run_probe(code: str, timeout_s: float = RENDER_TIMEOUT_S) -> tuple[bool, str]:
    """Run a snippet in its own process, which may crash or hang; (worked, its last line)."""
    root, command = Path(__file__).resolve().parent.parent, [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd=root)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:.0f} s"
    if done.returncode < 0:
        return False, f"the process died of signal {-done.returncode}"
    text = done.stdout if done.returncode == 0 else done.stderr or done.stdout
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return done.returncode == 0, lines[-1] if lines else "it printed nothing"


def check_pygame(probe: str = PYGAME_PROBE) -> Check:
    """Can the default experiment's frames be drawn?"""
    worked, said = run_probe(probe)
    return Check("pygame frame", *((Level.OK, said) if worked else (Level.FAIL, said, REINSTALL)))


def check_gl(probe: str = GL_PROBE) -> Check:
    """Can a dm_control frame be drawn, and through which GL back end?"""
    worked, said = run_probe(probe)
    if worked:
        return Check("GL frame", Level.OK, said)
    advice = (
        "only dm_control tasks from pixels need it. Debian or Ubuntu: apt-get install libegl1 "
        "libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa); MUJOCO_GL=osmesa forces the second"
    )
    return Check("GL frame", Level.WARN, said, advice)


def check_ffmpeg() -> Check:
    """Is there an ffmpeg that runs, for the videos?"""
    try:
        import imageio_ffmpeg

        executable = imageio_ffmpeg.get_ffmpeg_exe()
        done = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=60)
        done.check_returncode()
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return Check("ffmpeg", Level.FAIL, f"no videos: {error}", REINSTALL)
    return Check("ffmpeg", Level.OK, " ".join(done.stdout.split()[:3]))


def check_disk(folder: Path = Path("."), free_bytes: int | None = None) -> Check:
    """Is there room for runs: checkpoints, logs, and a replay kept on disk?"""
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    detail = f"{free / GIB:.1f} GiB free at {folder.resolve()}"
    advice = "make room, or keep runs elsewhere: run=/another/disk/run"
    if free < 0.5 * GIB:
        return Check("disk", Level.FAIL, detail, advice)
    if free < 5 * GIB:
        return Check("disk", Level.WARN, detail, advice)
    return Check("disk", Level.OK, detail)


def check_memory(memory: tuple[int, int] | None = None) -> Check:
    """Is there memory for the default experiment (about 2 GiB) and for larger ones?"""
    available, total = memory_bytes() if memory is None else memory
    if total == 0:
        return Check("memory", Level.WARN, "this system does not tell", "the demo needs 2 GiB")
    detail = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if available < 2 * GIB:
        advice = "the demo needs about 2 GiB: close other programs; a larger replay fits on disk"
        return Check("memory", Level.WARN, detail, advice)
    return Check("memory", Level.OK, detail)


def all_checks() -> list[Check]:
    """Every check, in the order in which they are printed."""
    pair = check_mujoco_pair()
    found = [check_python(), *map(check_package, PACKAGES), *([pair] if pair else []), check_cpu()]
    found += check_gpus()
    last: list[Callable[[], Check]] = [
        check_memory,
        check_disk,
        check_pygame,
        check_gl,
        check_ffmpeg,
    ]
    return found + [check() for check in progress.each(last, "checking")]


def exit_code(checks: Sequence[Check]) -> int:
    """1 if anything that training needs is missing, else 0."""
    return int(any(check.level is Level.FAIL for check in checks))


def as_text(checks: Sequence[Check]) -> str:
    """One line for each check, and its advice below it where there is any."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.level:<4}  {check.name:<{width}}  {check.detail}")
        if check.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.advice}")
    counts = {level: sum(check.level is level for check in checks) for level in Level}
    verdict = "Training cannot work here yet." if exit_code(checks) else "Ready to train."
    lines.append(f"{verdict} {counts[Level.FAIL]} FAIL, {counts[Level.WARN]} WARN.")
    return "\n".join(lines)


def doctor_command(say: Callable[[str], None], arguments: Sequence[str]) -> int:
    """Print every finding; the exit code says whether training can work."""
    known = {"--json", "json=true", "json=false"}
    if any(argument in HELP for argument in arguments):
        return 0  # the text above says it all
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        say(f"error: Unknown argument '{unknown[0]}'. Known: {', '.join(sorted(known))}.")
        return 2
    checks = all_checks()
    as_json = "--json" in arguments or "json=true" in arguments
    say(json.dumps([asdict(check) for check in checks], indent=2) if as_json else as_text(checks))
    return exit_code(checks)


if __name__ == "__main__":
    enter(doctor_command, __file__, __doc__)
