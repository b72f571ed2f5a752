"""The phases of a run on its one count of steps: who takes a step, and the switch between two.

After `state` in the flow. The state at a step, and so its checkpoint, has the form of the phase
that took the step; the switch belongs to the step after it. So a run that ends just before, at or
just after a switch resumes by the same path.
"""

import bisect
import dataclasses
import functools
import itertools

import jax
import numpy as np

from jxfer import trees
from jxfer.train.state import Plan, TrainState
from jxfer.transfer import optimizer
from jxfer.trees import Tree


@dataclasses.dataclass(frozen=True)
class Course:
    """The plans of a run's phases, in order, and its start."""

    plans: tuple[Plan, ...]
    initial: TrainState
    """Before the first step, in the form of the first phase; on the host."""

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """The last step of each phase, counted from the start of the run."""
        return tuple(itertools.accumulate(plan.total_steps for plan in self.plans))

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.ends[-1]

    def start(self, index: int) -> int:
        """Steps before a phase."""
        return self.ends[index] - self.plans[index].total_steps

    def index(self, step: int) -> int:
        """The phase that takes a step, which counts from 1; the nearest one for any other step."""
        return min(bisect.bisect_left(self.ends, step), len(self.plans) - 1)

    def like(self, step: int) -> TrainState:
        """Structure and shapes of the state after a step."""
        return self._shapes(self.index(step))

    def enter(self, state: TrainState, index: int) -> TrainState:
        """The state with which a phase begins, from that at the end of the phase before.

        Averages (`ema`) go on; those of leaves that begin to train start at their values.

        Args:
          state: on the host; its step is the last one of phase `index` - 1.
          index: of the phase that begins.
        """
        plan = self.plans[index]
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        fresh = plan.initial_state(variables)
        opt_state = jax.tree.map(np.asarray, optimizer.carry(state.opt_state, fresh.opt_state))
        held = trees.flatten(state.ema)
        ema = {path: held.get(path, leaf) for path, leaf in trees.flatten(fresh.ema).items()}
        return dataclasses.replace(state, opt_state=opt_state, ema=trees.unflatten(ema))

    def frozen_unchanged(self, state: TrainState) -> bool | None:
        """Whether what its phase and all before it freeze is as at the start; None: nothing is.

        Args:
          state: on the host, at the end of a phase.
        """
        plans = self.plans[: self.index(int(state.step)) + 1]
        before = [plan.frozen_leaves(self.initial) for plan in plans]
        after = plans[-1].frozen_leaves(state)
        paths = [path for path in after if all(path in leaves for leaves in before)]
        if not paths:
            return None
        return all(trees.same_bits(before[0][path], after[path]) for path in paths)

    def _shapes(self, index: int) -> TrainState:
        def start(variables: Tree) -> TrainState:
            return self.plans[index].initial_state(variables)

        variables = {"params": self.initial.params, "batch_stats": self.initial.batch_stats}
        return jax.eval_shape(start, variables)
