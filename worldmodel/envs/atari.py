"""Atari games through the Arcade Learning Environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .config import EnvConfig, EnvError, unknown
from .wrappers import Guard

MAX_FRAMES = 108_000  # half an hour of play, where the settings give no time limit


def build(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    """The game `config.id` (pong, ms_pacman, ...), one step for each agent step.

    Raises EnvError for unknown games and where ale-py is not installed.
    """
    return Guard(Atari(config))


class Atari(gymnasium.Env[Any, Any]):
    """One game: images uint8 [210, 160, 3], the pixelwise maximum of the last two frames of an
    agent step; and, where `state` is true or `pixels` false, the console's memory as `ram` [128].
    """

    def __init__(self, config: EnvConfig) -> None:
        try:
            import ale_py
        except ImportError as error:
            raise EnvError(
                "The atari suite needs the package ale-py, which is not installed. Run "
                '`pip install "worldmodel[atari]"`.'
            ) from error
        games = ale_py.roms.get_all_rom_ids()
        if config.id not in games:
            raise unknown("Atari game", config.id, games)
        if config.kwargs.keys() - {"mode", "difficulty"}:
            raise EnvError(
                f"kwargs has {sorted(config.kwargs)}, but Atari takes only mode and difficulty."
            )
        self.metadata = {"render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array"
        self._config = config
        rom = ale_py.roms.get_rom_path(config.id)
        assert rom is not None
        self._rom = rom
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        # Sticky actions are drawn here: the console takes a seed only with the ROM, 90 ms a time.
        self._ale.setFloat("repeat_action_probability", 0.0)
        frames = MAX_FRAMES if config.time_limit is None else 0  # 0 = without end
        self._ale.setInt("max_num_frames_per_episode", frames)
        self._load()
        # A console that is only reset remembers its past; nearly thirty games play on differently.
        self._pristine = self._ale.cloneSystemState()
        full = config.atari.full_actions
        self._actions = self._ale.getLegalActionSet() if full else self._ale.getMinimalActionSet()
        self.action_space = spaces.Discrete(len(self._actions))
        height, width = self._ale.getScreenDims()
        self._frames = np.zeros((2, height, width, 3), np.uint8)
        self._lives = self._held = 0  # held: the action that a sticky one repeats
        self.goes_on = False  # a life was lost, but the game is not over: the next reset is soft
        self.observation_space = self._space((height, width, 3))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.goes_on and seed is None:
            self._act(0)
        else:
            self._ale.restoreSystemState(self._pristine)
            self._ale.reset_game()
            self._held = 0
            limit = self._config.atari.noops
            for _ in range(self.np_random.integers(limit + 1)):
                self._ale.act(0)
                if self._ale.game_over():
                    self._ale.reset_game()
        self.goes_on = False
        self._lives = self._ale.lives()
        self._ale.getScreenRGB(self._frames[0])
        return self._observe(), {"lives": self._lives}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        times = self._config.action_repeat
        pool = self._config.atari.max_pool and times > 1
        for i in range(times):
            reward += self._act(action)
            over = self._ale.game_over()
            if pool and i == times - 2:
                self._ale.getScreenRGB(self._frames[1])
            if over:
                break
        self._ale.getScreenRGB(self._frames[0])
        if pool and i == times - 1:
            np.maximum(self._frames[0], self._frames[1], out=self._frames[0])
        terminated = bool(self._ale.game_over(with_truncation=False))
        truncated = bool(over) and not terminated
        lives, before = self._ale.lives(), self._lives
        self._lives = lives
        if self._config.atari.life_loss and lives < before and not over:
            terminated = self.goes_on = True
        return self._observe(), reward, terminated, truncated, {"lives": lives}

    def render(self) -> np.ndarray:
        """uint8 [210, 160, 3], the newest observation."""
        return self._frames[0]

    def _act(self, action: int) -> float:
        """One frame. With probability `sticky` the console repeats its last action (Machado et
        al. 2018, section 5)."""
        sticky = self._config.atari.sticky
        if not sticky or self.np_random.random() >= sticky:
            self._held = action
        return self._ale.act(self._actions[self._held])

    def _load(self) -> None:
        self._ale.loadROM(self._rom)
        if "mode" in self._config.kwargs:
            self._ale.setMode(self._config.kwargs["mode"])
        if "difficulty" in self._config.kwargs:
            self._ale.setDifficulty(self._config.kwargs["difficulty"])

    def _space(self, shape: tuple[int, int, int]) -> spaces.Space[Any]:
        image = spaces.Box(0, 255, shape, np.uint8)
        if self._config.pixels and not self._config.state:
            return image
        ram = spaces.Box(0, 255, (self._ale.getRAMSize(),), np.uint8)
        return spaces.Dict({"image": image, "ram": ram})

    def _observe(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {"image": self._frames[0], "ram": self._ale.getRAM()}
        return self._frames[0]
