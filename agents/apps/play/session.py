"""One walk through a dream: start, act, go back, branch, and look. Nothing here knows of a page.

    start       context rows, the last of them is the start frame        node 0
    act(a)      node -> a new node: the dream's next moment; and, where the walk began in the real
                environment, what that did under the same action
    undo, jump  only move; nothing is forgotten
    branch      acting anywhere but at the tip of a branch opens another one; they share their past

Every node draws its random numbers from a seed of its own, so the same walk under the same seed
gives the same dream to the last bit, and the same action twice from one moment gives two futures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.apps.episodes import Episodes
from agents.apps.plans import plan_strip
from agents.apps.play.reality import Moment, Reality
from agents.apps.play.walk import Branch, Node, Real, label_of
from agents.apps.play.world import CONTEXT, Sight, World, allowed, allows, seed_of
from worldmodel.types import MASK_KEY

MOST_CONTEXT = 64
MOST_NODES = 20_000  # of one walk; a node of 64 x 64 pixels takes about 30 KB
VIEWS = ("dream", "both", "real")
EYES = ("dream", "real")  # what the policy decides from


@dataclass
class Session:
    """A walk of one person. seed: of all random numbers. Not safe for several threads at once.

    Raises ValueError with clear words for whatever a person can ask wrongly, and RunError where
    the real environment fails.
    """

    world: World
    recorded: Episodes | None = None
    seed: int = 0
    about: str = ""  # where this walk began, in words
    nodes: list[Node] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    plans: dict[int, np.ndarray] = field(default_factory=dict)  # of the nodes they led to
    reality: Reality | None = None
    lead: list[np.ndarray] = field(default_factory=list)  # pictures of the context
    at: int = 0  # the node that one looks at
    on: int = 0  # the branch that one walks on
    _lead_actions: list[np.ndarray] = field(default_factory=list)
    _fresh: bool = False  # the next step opens a branch, even at a tip

    # Starting.

    def start_recorded(self, episode: int, row: int, context: int = CONTEXT) -> Node:
        """Begin at a recorded row, after at most `context` rows that the model sees."""
        if not self.world.shows:
            raise ValueError(
                "This world has no decoder: from a recorded frame on there would be nothing to "
                "see. Start in the real environment."
            )
        if self.recorded is None:
            raise ValueError("This run has no replay to start from. Start with a fresh reset.")
        self.recorded.check(episode, row)
        length = min(_context(context), row + 1)
        batch = self.recorded.batch([episode], row + 1 - length, length)
        latent = self.world.after(batch, seed_of(self.seed, "context", 0))
        frames = [
            self.world.picture({k: v[0, t].numpy() for k, v in batch.obs.items()})
            for t in range(batch.shape[1])
        ]
        about = f"episode {episode}, row {row}"
        return self._begin(self.world.look(latent), None, frames, [], None, about)

    def start_real(self, seed: int, context: int = CONTEXT) -> Node:
        """Begin with a fresh reset of the real environment, which goes on beside the dream. The
        agent acts until `context` frames are seen, or until the episode ends."""
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise ValueError(
                f"The seed is {seed!r}; it must be a whole number from 0 to 2**31 - 1."
            )
        context, world = _context(context), self.world
        reality = Reality(world.policy.env, world.spec, seed, rendered=not world.shows)
        try:
            moment = reality.first
            actions: list[np.ndarray] = []
            latent = world.see(
                world.model.initial(1), moment.obs, None, seed_of(self.seed, "context", 0)
            )
            frames = [self._picture(moment)]
            while len(frames) < context and not moment.ended:
                number = len(frames)
                draw = seed_of(self.seed, "lead", number)
                action = world.decide(latent, moment.obs.get(MASK_KEY), "mode", draw)
                moment = reality.advance(actions, moment, action)
                actions.append(action)
                latent = world.see(
                    latent, moment.obs, action, seed_of(self.seed, "context", number)
                )
                frames.append(self._picture(moment))
        except BaseException:
            reality.close()
            raise
        real = Real(moment, frames[-1], latent)
        about = f"reset with seed {seed}"
        return self._begin(world.look(latent), real, frames, actions, reality, about)

    def _begin(
        self,
        sight: Sight,
        real: Real | None,
        frames: list[np.ndarray],
        actions: list[np.ndarray],
        reality: Reality | None,
        about: str,
    ) -> Node:
        self.close()
        self.reality, self.lead, self._lead_actions = reality, frames, actions
        self.about = about
        self.nodes = [Node(0, None, 0, 0, None, sight, real)]
        self.branches, self.plans = [Branch("A", None, 0, 0)], {}
        self.at = self.on = 0
        self._fresh = False
        return self.node

    def close(self) -> None:
        """Let go of the real environment; the walk itself stays."""
        if self.reality is not None:
            self.reality.close()
            self.reality = None

    # Acting.

    @property
    def mask(self) -> np.ndarray | None:
        """The actions allowed now, [A] zeros and ones, or None where all are: as the real
        environment says where it runs, else as the dream foretells."""
        real = self.node.real
        if real is not None and not real.moment.ended and MASK_KEY in real.moment.obs:
            return allowed(real.moment.obs[MASK_KEY], self.world.spec.action.sizes)
        return self.node.sight.mask

    def act(self, action: Any) -> Node:
        """One step with an encoded action [A], in the dream and in the real environment."""
        given = self.checked(action)
        here, number = self.node, len(self.nodes)
        if not self.world.shows and not self.going:
            raise ValueError(
                "The episode is over, and the dream beyond cannot be seen. Undo, or start anew."
            )
        if number >= MOST_NODES:
            raise ValueError(
                f"This walk has {MOST_NODES:,} steps, and no more are kept. Start anew."
            )
        sight = self.world.dream(here.sight.latent, given, seed_of(self.seed, "dream", number))
        real = self._really(here, given, number)
        branch = self._branch_of_next(here)
        node = Node(number, here.number, branch, here.depth + 1, given, sight, real)
        self.nodes.append(node)
        self.branches[branch].tip = self.at = number
        self.on = branch
        return node

    def checked(self, action: Any) -> np.ndarray:
        """An encoded action as float32 [A]. ValueError unless it is finite, in range, one class of
        each factor, and allowed now."""
        spec = self.world.spec.action
        try:
            given = np.array(action, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"The action must be {spec.size} numbers, not {action!r:.80}."
            ) from None
        if given.shape != (spec.size,) or not np.isfinite(given).all():
            raise ValueError(f"The action must be {spec.size} finite numbers, not {action!r}.")
        if spec.kind == "continuous":
            if np.abs(given).max(initial=0.0) > 1.0:
                raise ValueError(f"The action is {given.tolist()}; each entry lies in [-1, 1].")
        elif not np.array_equal(spec.encode(spec.decode(given)), given):
            raise ValueError(f"The action {given.tolist()} is not one choice of each factor.")
        elif not allows(self.mask, given):
            raise ValueError("The action mask does not allow this action here.")
        return given

    @property
    def going(self) -> bool:
        """Whether the real episode goes on here."""
        return self.node.real is not None and not self.node.real.moment.ended

    def policy_action(self, eyes: str = "dream", mode: str = "mode") -> np.ndarray:
        """What the agent would do here, encoded [A], judging by the dream or by what is real (which
        it always does where the dream cannot be shown)."""
        if eyes not in EYES:
            raise ValueError(f"Unknown eyes '{eyes}'. Known: {', '.join(EYES)}.")
        node = self.node
        really = eyes == "real" or not self.world.shows
        latent = node.real.latent if really and node.real else node.sight.latent
        draw = seed_of(self.seed, "policy", len(self.nodes))
        if self.world.planner is None:
            return self.world.decide(latent, self.mask, mode, draw)
        plan = self.world.plan(latent, self.mask, draw)
        if self.world.shows:
            self.plans[len(self.nodes)] = plan_strip(
                self.world.model, self.world.spec, latent, plan, draw
            )
        return plan.action[0].cpu().numpy()

    def random_action(self) -> np.ndarray:
        """A uniform encoded action [A] among those allowed."""
        return self.world.random_action(self.mask, seed_of(self.seed, "random", len(self.nodes)))

    def _really(self, here: Node, action: np.ndarray, number: int) -> Real | None:
        """The real environment's next moment, or None where there is none or it has ended."""
        if self.reality is None or here.real is None or here.real.moment.ended:
            return None
        world, before = self.world, here.real
        past = [*self._lead_actions, *self.actions()]
        moment = self.reality.advance(past, before.moment, action)
        draw = seed_of(self.seed, "posterior", number)
        return Real(
            moment,
            self._picture(moment),
            world.see(before.latent, moment.obs, action, draw),
            world.surprise(here.sight.latent, moment.obs, action, draw),
            world.surprise(before.latent, moment.obs, action, draw),
        )

    def _picture(self, moment: Moment) -> np.ndarray:
        return self.world.picture(moment.obs) if moment.picture is None else moment.picture

    def _branch_of_next(self, here: Node) -> int:
        """The branch that a step from here belongs to: a new one, except at a tip."""
        if self.branches[self.on].tip == here.number and not self._fresh:
            return self.on
        self._fresh = False
        # The branch that the fork lies on, which need not be the one that was walked.
        self.branches.append(
            Branch(label_of(len(self.branches)), here.branch, here.number, here.number)
        )
        return len(self.branches) - 1

    # Moving.

    @property
    def node(self) -> Node:
        """Where one is."""
        if not self.nodes:
            raise ValueError("Nothing has begun. Choose where to start.")
        return self.nodes[self.at]

    def undo(self, steps: int = 1) -> Node:
        """Back by this many steps, and at most to the start."""
        if type(steps) is not int or steps < 1:
            raise ValueError(f"One goes back by at least 1 step, not {steps!r}.")
        for _ in range(steps):
            parent = self.node.parent
            if parent is None:
                break
            self.at = parent
        self._fresh = False
        return self.node

    def redo(self, steps: int = 1) -> Node:
        """Forward along this branch, and at most to its tip."""
        if type(steps) is not int or steps < 1:
            raise ValueError(f"One goes forward by at least 1 step, not {steps!r}.")
        return self.jump_in(self.on, self.node.depth + steps)

    def branch(self) -> str:
        """Let the next step open a new branch here; its label."""
        self.node  # noqa: B018 - raises where nothing has begun
        self._fresh = True
        return label_of(len(self.branches))

    def jump(self, number: int) -> Node:
        """To any moment there ever was in this walk."""
        if type(number) is not int or not 0 <= number < len(self.nodes):
            raise ValueError(f"There is no moment {number!r}; this walk has {len(self.nodes)}.")
        self.at, self.on = number, self.nodes[number].branch
        self._fresh = False
        return self.node

    def jump_in(self, branch: int, depth: int) -> Node:
        """To the moment `depth` steps after the start on a branch; beyond its tip: the tip."""
        if type(branch) is not int or not 0 <= branch < len(self.branches):
            raise ValueError(f"There is no branch {branch!r}; there are {len(self.branches)}.")
        if type(depth) is not int or depth < 0:
            raise ValueError(f"A depth is a whole number from 0 on, not {depth!r}.")
        path = self.path(self.branches[branch].tip)
        self.at, self.on = path[min(depth, len(path) - 1)].number, branch
        self._fresh = False
        return self.node

    # Looking.

    def path(self, number: int | None = None) -> list[Node]:
        """The moments from the start to a node (to where one is)."""
        found = [self.node if number is None else self.nodes[number]]
        while found[-1].parent is not None:
            found.append(self.nodes[found[-1].parent])
        return found[::-1]

    def actions(self) -> list[np.ndarray]:
        """The encoded actions from the start to where one is."""
        return [node.action for node in self.path() if node.action is not None]

    @property
    def has_real(self) -> bool:
        """Whether this walk began in the real environment."""
        return bool(self.nodes) and self.nodes[0].real is not None

    def view(self, wanted: str) -> str:
        """The view that is possible: without a real environment the dream alone, without a decoder
        reality alone."""
        if wanted not in VIEWS:
            raise ValueError(f"Unknown view '{wanted}'. Known: {', '.join(VIEWS)}.")
        if not self.world.shows:
            return "real"
        return wanted if self.has_real else "dream"


def _context(length: Any) -> int:
    if type(length) is not int or not 1 <= length <= MOST_CONTEXT:
        raise ValueError(f"The context is {length!r} frames; it must be 1 to {MOST_CONTEXT}.")
    return length
