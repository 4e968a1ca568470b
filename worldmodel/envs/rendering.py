"""Which OpenGL MuJoCo draws with: EGL, else OSMesa, settled before dm_control is imported."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import subprocess
import sys

from .config import EnvError

VARIABLE = "MUJOCO_GL"
VARIABLES = (VARIABLE, "PYOPENGL_PLATFORM")
BACKENDS = ("egl", "osmesa")
OFF = ("disable", "disabled", "off", "false", "0")

# Drawing one frame of an empty world is the only honest answer to "does it work?", and a crash of
# a driver must not take the caller along.
_PROBE = """
import mujoco
world = mujoco.MjModel.from_xml_string('<mujoco/>')
data = mujoco.MjData(world)
mujoco.mj_forward(world, data)
with mujoco.Renderer(world, 16, 16) as renderer:
    renderer.update_scene(data)
    assert renderer.render().shape == (16, 16, 3)
"""

_log = logging.getLogger(__name__)


@functools.cache
def choose_backend() -> str:
    """The backend that MuJoCo will draw with; sets MUJOCO_GL and PYOPENGL_PLATFORM, which child
    processes inherit. A MUJOCO_GL that the user set is kept.

    Raises EnvError where neither EGL nor OSMesa can draw, and where MUJOCO_GL switches drawing off.
    """
    if not _has_llvm():
        _load_triton()
    given = _chosen_by_import() or os.environ.get(VARIABLE, "").lower().strip()
    if given in OFF:
        raise EnvError(
            f"Pixels need OpenGL, but {VARIABLE} is '{given}'. Unset it, or set it to egl or "
            f"osmesa, before the program starts; or set env.pixels=false."
        )
    if given:
        if given in BACKENDS:
            os.environ["PYOPENGL_PLATFORM"] = given
        _log.info("MuJoCo draws with %s, as chosen before", given)
        return given
    failures = {}
    for name in BACKENDS:
        failure = _try(name)
        if failure is None:
            os.environ[VARIABLE] = os.environ["PYOPENGL_PLATFORM"] = name
            _log.info("MuJoCo draws with %s", name)
            return name
        failures[name] = failure
    raise EnvError(
        f"MuJoCo cannot draw: EGL failed ({failures['egl']}), and so did OSMesa "
        f"({failures['osmesa']}). On Debian or Ubuntu install one of them: "
        f"`apt-get install libegl1` or `apt-get install libosmesa6`. Or set env.pixels=false."
    )


def _has_llvm() -> bool:
    """Whether an LLVM is in this process already, as software OpenGL brings one; never known but
    on Linux, where alone it matters."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return "libLLVM" in file.read()
    except OSError:
        return False


def _load_triton() -> None:
    """Loads the compiler that most of PyTorch's builds bring, if one is there.

    It carries an LLVM, as software OpenGL does. Loaded after that one it crashes the process, and
    PyTorch loads it whenever it likes; the other way round both work.
    """
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("triton._C.libtriton")


def prepare(pixels: bool) -> None:
    """Settles the backend before the first import of dm_control; without pixels, none is needed."""
    try:
        choose_backend()
    except EnvError:
        if pixels:
            raise
        if VARIABLE not in os.environ:
            # dm_control would otherwise try windows first, and warn where there is no display.
            os.environ[VARIABLE] = "disable"


def _chosen_by_import() -> str:
    """What an earlier import of dm_control settled on, which cannot be changed, or ""."""
    loaded = sys.modules.get("dm_control._render")
    if loaded is None or os.environ.get(VARIABLE):
        return ""
    backend = loaded.BACKEND or "disable"
    if backend == "glfw" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise EnvError(
            f"dm_control was imported before an OpenGL was chosen and took glfw, which needs a "
            f"display that is not there. Make the environment before importing dm_control, or set "
            f"{VARIABLE}=egl or {VARIABLE}=osmesa before the program starts."
        )
    return str(backend)


def _try(name: str) -> str | None:
    """None where a frame could be drawn, and otherwise the last words of the attempt."""
    environment = os.environ | {VARIABLE: name, "PYOPENGL_PLATFORM": name}
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    return (errors or lines or [f"exit code {result.returncode}"])[-1].strip()
