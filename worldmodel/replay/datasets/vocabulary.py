"""The names that other tools give to the arrays of a recording, and what each means."""

from __future__ import annotations

import re

from worldmodel.types import MASK_KEY

ROLES = {
    "action": ("action", "actions", "act", "acts", "ac", "acs"),
    "reward": ("reward", "rewards", "rew", "rews", "r"),
    "is_first": ("is_first", "first", "episode_start", "episode_starts", "is_init"),
    "is_last": ("is_last", "last", "episode_end", "dones_float"),
    "terminated": ("is_terminal", "terminal", "terminals", "terminated", "terminateds",
                   "termination", "terminations", "absorbing"),
    "truncated": ("timeout", "timeouts", "time_out", "time_outs", "truncated", "truncateds",
                  "truncation", "truncations", "is_truncated"),
    "done": ("done", "dones"),
    "goes_on": ("mask", "masks", "not_done", "not_dones", "not_terminal", "nonterminal",
                "nonterminals", "non_terminal", "non_terminals"),
    "valid": ("collector/mask", "valid_mask", "attention_mask"),
    "step_type": ("step_type", "step_types"),
    "discount": ("discount", "discounts"),
    "success": ("success", "successes", "is_success"),
    "episode": ("episode", "episodes", "episode_id", "episode_ids", "episode_index", "episode_idx",
                "episode_number", "episode_nr", "eps_id", "ep_idx", "ep_id", "ep_index", "traj_id",
                "traj_ids", "traj_idx", "traj_index", "trajectory", "trajectory_id",
                "trajectory_ids", "trajectory_index", "trajectory_idx", "demo_id", "rollout_id"),
    "counter": ("frame_index", "frame_idx", "frame_id", "step_count", "step_index"),
}  # fmt: skip
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
# Parts that say something of the episodes without being part of a step.
UNSEEN = {"goes_on": "says where the world ends", "success": "an outcome, no observation",
          "valid": "says which rows hold a step", "discount": "an outcome, no observation",
          "step_type": "says where episodes begin and end",
          "counter": "a counter or a clock"}  # fmt: skip
# Of an array that belongs to one of several episodes: "actions_0", "observations_0_1".
NUMBERED = re.compile(r"(?P<name>.+?)_(?P<episode>\d+)(_(?P<part>\d+))?")
# What a user may map, and what each is called inside.
MAPPABLE = ("observation", "next_observation", "action", "reward", "is_first", "is_last",
            "terminated", "truncated", "done", "episode", "skip")  # fmt: skip
CONTAINERS = ("observation", "observations", "obs", "ob")
GOALS = ("achieved_goal", "desired_goal", "goal", "goals", MASK_KEY)
PREFIXES = ("steps", "data", "transitions", "trajectory")  # of all that a file holds
# Recorded beside experience, and never observed unasked.
IGNORED = {
    **dict.fromkeys(("info", "infos", "metadata", "meta", "id", "seed", "version", "reset",
                     "weight", "weights", "total_size", "columns", "num_episodes",
                     "discrete_action", "stepid", "consec", "unroll_id", "agent_index",
                     "task_index", "subtask_index", "task", "language_instruction",
                     "priority", "options", "log"), "noted beside experience"),
    **dict.fromkeys(("step", "steps", "timestamp", "timestamps", "time", "t", "timestep",
                     "timesteps", "time_step", "time_steps", "index", "indices", "env_id",
                     "env_ids"), "a counter or a clock"),
    **dict.fromkeys(("deter", "stoch", "logprob", "logprobs", "log_prob", "log_probs", "logits",
                     "value", "values", "state_value", "advantage", "advantages", "policy",
                     "sample_log_prob", "action_log_prob", "value_target", "vf_preds", "neglogp",
                     "mu", "mus", "sigma", "sigmas"), "noted by the policy"),
    **dict.fromkeys(("cost", "costs", "return", "returns", "rtg",
                     "returns_to_go", "return_to_go", "episode_terminals", "valids"),
                    "an outcome, no observation"),
}  # fmt: skip
LOOKS = (
    ("a reward", "reward", re.compile(r"reward|(^|_)rews?($|_)")),
    (
        "an end",
        "done",
        re.compile(
            r"done|terminal|terminat|truncat|timeout|discount"
            r"|(^|_)(ends?|ended|over|finished)($|_)"
        ),
    ),
    ("a next observation", "next_observation", re.compile("next|successor")),
    ("a number of the episode", "episode", re.compile(r"episode|(^|_)(ep|traj|trajectory)(_|$)")),
    ("an index", "skip", re.compile(r"index|(^|_)(idx|indices)($|_)|timestamp|timestep")),
    ("an action", "skip", re.compile(r"^(?!.*(mask|prev|last)).*action")),
)


def words_of(name: str) -> list[str]:
    """The groups that a name runs through: "next.observation/state" has three words."""
    return [part for part in name.replace(".", "/").split("/") if part] or [name]


# Of a name of what stood before, beside which the present one is no next observation.
PAST = re.compile(r"prev|last|old|before|delay|(^|_)lag")
FLAG = "one True or False a row, perhaps a flag; offline_names says which"


def looks_like(what: str) -> str:
    """Why a name that looks like `what` is not observed."""
    return f"looks like {what}; offline_names says what it is"


def reason(name: str) -> str:
    """Why an array is not observed unasked, or "" where it may be."""
    parts = words_of(name.lower())
    for word in (parts[0], parts[-1]):
        if word in IGNORED:
            return IGNORED[word]
    if parts[0].startswith("log_"):
        return "noted beside experience"
    if (inner := ROLE_OF.get(parts[-1])) is not None and len(parts) > 1:
        return f"looks like the {inner}; offline_names says what it is"
    flat = "_".join(parts)
    return next((looks_like(what) for what, _, look in LOOKS if look.search(flat)), "")
