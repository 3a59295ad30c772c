"""Step -> documents: which records a step holds, so that the tokens spent follow the budgets.

    shares, state ──▶ what each stream is owed ──▶ its next records ──▶ rows of fixed length

A step is G tokens in rows of R tokens. Records are put into rows here, so that what a step holds does not depend
on how many rows make a microbatch or how many ranks there are. The plan of a step is a pure function of the seed,
the step and the planner's state; the state is integers, and what the run decided (``decide``).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.order import Order
from data.ragged import starts_of, sums
from data.rows import Rows
from data.sampling import Stream
from data.shares import Decisions, Mix

LAG = (
    2  # realised tokens of step s are known to the plan of step s + 1 + LAG: so many steps may be made ahead
)
_MICRO = 1_000_000  # owed tokens are counted in millionths, as integers
_AT_ONCE = 1 << 18  # a step of so many tokens or more is planned at once but for its last records

MixOf = Callable[[int, np.ndarray, Decisions], Mix]  # tokens planned, exhausted streams (S,), decisions


class StepPlan(NamedTuple):
    """The records of one step; columns of ``records``: stream, record, epoch, room, row."""

    step: int
    records: np.ndarray  # (n, 5) int64, ordered by row
    planned: np.ndarray  # (S,) int64, tokens set aside for each stream
    shut: tuple[str, ...] = ()  # gates

    def rows(self, first: int, last: int) -> np.ndarray:
        """The records of rows ``first`` to ``last`` (excluded)."""
        begin, end = np.searchsorted(self.records[:, 4], [first, last])
        return self.records[begin:end]


class InFlight(NamedTuple):
    """A step whose realised tokens are not counted yet."""

    step: int
    planned: np.ndarray  # (S,) int64
    due: np.ndarray  # (S,) int64, millionths: what the streams were due of it


class PlannerState(NamedTuple):
    """Everything that the plan of ``step`` depends on besides the seed, the streams, the recipe and decisions."""

    step: int
    tokens: int  # planned so far, in all steps
    cursors: np.ndarray  # (S,) int64, records taken so far, over all epochs
    stage: int
    stage_step: int  # the first step of the stage
    # The account of this stage:
    owed: np.ndarray  # (S,) int64, millionths of tokens due minus charged
    set_aside: np.ndarray  # (S,) int64, tokens planned in the steps whose realised tokens are counted
    realised: np.ndarray  # (S,) int64, tokens that these steps really held
    in_flight: tuple[InFlight, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain integers and lists."""
        arrays = {name: getattr(self, name).tolist() for name in ("cursors", "owed", "set_aside")}
        flight = [[step, planned.tolist(), due.tolist()] for step, planned, due in self.in_flight]
        numbers = {name: getattr(self, name) for name in ("step", "tokens", "stage", "stage_step")}
        return {**numbers, **arrays, "spent": self.realised.tolist(), "in_flight": flight}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlannerState:
        """The state that ``to_json`` wrote."""
        step, tokens, stage, stage_step = (
            int(values[name]) for name in ("step", "tokens", "stage", "stage_step")
        )
        cursors, owed, set_aside, spent = (
            np.array(values[name], np.int64) for name in ("cursors", "owed", "set_aside", "spent")
        )
        flight = tuple(
            InFlight(int(number), np.array(planned, np.int64), np.array(due, np.int64))
            for number, planned, due in values["in_flight"]
        )
        return cls(step, tokens, cursors, stage, stage_step, owed, set_aside, spent, flight)


class Planner:
    """Plans steps in order, and corrects itself by the tokens that were really spent.

    Over the run every stream gets its share of the tokens. A single step holds a task for certain only if the
    task's due is more than a record; a smaller task comes when enough is owed to it. A stream is charged at least
    half of what was set aside for it: one whose records mostly give no example gets less than its share, and
    can not take the steps from the others.

    Shares may change from step to step. Each step's tokens are due by the shares of that step, so a stream whose
    share rises is not paid for the time before. A stage begins with an empty account: what was owed or overspent
    by the budgets of the last one (a few records a stream) does not tilt its own. A stream without a share hands
    what it is owed, or owes, to the others.

    Args:
        streams: the S streams of the run.
        mix_of: the shares of a step by the tokens planned before it, the streams that have no record left and
            the decisions in force.
        step_tokens: G, tokens of a step.
        row_tokens: R, tokens of a row; every example must fit into one.
        maximum_tokens: the longest document.
        seed: keys the order of every epoch.

    """

    def __init__(
        self,
        streams: Sequence[Stream],
        mix_of: MixOf,
        *,
        step_tokens: int,
        row_tokens: int,
        maximum_tokens: int,
        seed: int,
    ) -> None:
        """See the class."""
        self.streams = streams
        self.row_tokens = row_tokens
        self.rows = step_tokens // row_tokens
        self.maximum_tokens = maximum_tokens
        self.seed = seed
        count = len(streams)
        tasks = list(dict.fromkeys(stream.task.name for stream in streams))
        self._of_task = [[i for i, s in enumerate(streams) if s.task.name == name] for name in tasks]
        self._mix_of = mix_of
        self._order = Order(streams, seed, maximum_tokens)
        self._ends = self._order.ends
        nothing = np.zeros(count, np.int64)
        self._state = PlannerState(1, 0, nothing, 0, 1, nothing, nothing, nothing, ())
        self._decisions: list[tuple[int, str, float]] = []  # after which step, what, value; in order
        self._before: dict[
            int, PlannerState
        ] = {}  # the states before the steps that are planned but not fed back
        self._realised: dict[int, np.ndarray] = {}

    def plan(self) -> StepPlan:
        """The next step. Needs the realised tokens of all steps but the last LAG that were planned."""
        self._before[self._state.step] = self._state
        plan, self._state = self.plan_from(self._settled(self._state))
        return plan

    def feedback(self, step: int, realised: np.ndarray) -> None:
        """Take the tokens (S,) that ``step`` really held, over all ranks."""
        self._realised[step] = np.asarray(realised, np.int64)
        self._before.pop(step, None)
        for old in [known for known in self._realised if known < step - LAG]:
            del self._realised[old]

    def decide(self, name: str, value: float, after_step: int) -> None:
        """Record what the run found after ``after_step``: in force from step ``after_step + 1 + LAG`` on.

        No step from there on can have been planned yet, so look-ahead changes nothing; a later decision of the same
        name replaces the earlier one.
        """
        if self._state.step > after_step + 1 + LAG:
            raise RuntimeError(f"step {self._state.step - 1} is planned already: too late to decide {name}")
        self._decisions.append((after_step, name, value))

    def decisions(self, step: int) -> dict[str, float]:
        """What is decided for ``step``, by name."""
        return {name: value for after, name, value in self._decisions if after + 1 + LAG <= step}

    def decided(self) -> dict[str, float]:
        """The last decision of each name, whether it is in force yet or not."""
        return {name: value for _, name, value in self._decisions}

    def mix(self, step: int) -> Mix:
        """What holds for a step: the next one, or one that was planned and not fed back."""
        return self._mix(self._before.get(step, self._state))

    def exhausted(self, step: int) -> bool:
        """Whether ``step``, planned and not fed back, holds nothing, since every stream has come to its end."""
        return not any(flight.planned.any() for flight in self._state.in_flight if flight.step == step)

    def state(self) -> dict[str, Any]:
        """Plain integers from which ``restore`` goes on after the last step that was fed back."""
        state = self._before[min(self._before)] if self._before else self._state
        realised = {
            str(step): self._realised[step].tolist() for step in sorted(self._realised) if step < state.step
        }
        return {**state.to_json(), "realised": realised, "decisions": [list(d) for d in self._decisions]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``."""
        self._state = PlannerState.from_json(state)
        self._before = {}
        self._realised = {int(s): np.array(tokens, np.int64) for s, tokens in state["realised"].items()}
        self._decisions = [(int(after), name, value) for after, name, value in state["decisions"]]

    def _mix(self, state: PlannerState) -> Mix:
        return self._mix_of(state.tokens, state.cursors >= self._ends, self.decisions(state.step))

    def _settled(self, state: PlannerState) -> PlannerState:
        """The state with the steps that are LAG + 1 or more behind counted as realised, the others as planned."""
        ready = [flight for flight in state.in_flight if flight.step < state.step - LAG]
        owed, set_aside, realised = state.owed, state.set_aside, state.realised
        for step, planned, due in ready:
            if step not in self._realised:
                raise RuntimeError(f"step {state.step} is planned before the tokens of step {step} are known")
            if step < state.stage_step:
                continue  # of an account that is closed
            before = _charged(set_aside, realised)
            set_aside, realised = set_aside + planned, realised + self._realised[step]
            charged = _charged(set_aside, realised) - before
            kept = np.floor(due * (charged.sum() / max(1, planned.sum()))).astype(np.int64)
            owed = owed + (kept - charged * _MICRO) - (due - planned * _MICRO)
        flight = state.in_flight[len(ready) :]
        return state._replace(owed=owed, set_aside=set_aside, realised=realised, in_flight=flight)

    def plan_from(self, state: PlannerState) -> tuple[StepPlan, PlannerState]:
        """The plan of ``state.step`` and the state after it: pure."""
        mix = self._mix(state)
        shares = mix.shares
        if mix.stage != state.stage:
            nothing = np.zeros_like(state.owed)
            state = state._replace(
                stage=mix.stage, stage_step=state.step, owed=nothing, set_aside=nothing, realised=nothing
            )
        owed_before = _handed_over(state.owed, shares)
        capacity = self.rows * self.row_tokens
        need = shares * capacity + owed_before / _MICRO
        rows = Rows(self.rows, self.row_tokens)
        parts = [np.empty((0, 5), np.int64)]
        if capacity >= _AT_ONCE:
            parts.append(self._taken_at_once(state.cursors, np.where(shares > 0, need, 0.0), rows))
        parts.append(self._taken_one_by_one(state.cursors, parts[-1], need, shares, rows))
        records = np.concatenate(parts)
        taken = np.bincount(records[:, 0], minlength=len(self.streams))
        planned = np.bincount(records[:, 0], records[:, 3], len(self.streams)).astype(np.int64)
        cursors = state.cursors + taken
        if (cursors >= self._ends).all() and 2 * int(planned.sum()) < capacity:
            records, planned = (
                records[:0],
                np.zeros_like(planned),
            )  # too little is left for a step like the others
        # What was taken at once is in order: a sort that merges runs costs next to nothing (of a column by itself).
        by_row = np.argsort(np.ascontiguousarray(records[:, 4]), kind="stable")
        records = records.take(by_row, axis=0)
        due = np.floor(shares * (int(planned.sum()) * _MICRO)).astype(np.int64)
        after = state._replace(
            step=state.step + 1,
            tokens=state.tokens + int(planned.sum()),
            cursors=cursors,
            owed=owed_before + due - planned * _MICRO,
            in_flight=(*state.in_flight, InFlight(state.step, planned, due)),
        )
        return StepPlan(state.step, records, planned, mix.shut), after

    def _taken_at_once(self, cursors: np.ndarray, need: np.ndarray, rows: Rows) -> np.ndarray:
        """What no order of taking would change: of every stream the records that it is owed, but for the last few.

        Half a document a stream is left to what is taken one by one, which closes the gaps. The records are laid
        into rows evenly mixed, so that every microbatch holds about the same of every stream.
        """
        wanted = np.maximum(0, need - self.maximum_tokens / 2).astype(np.int64)
        found = self._order.up_to(cursors, wanted)
        rooms = found.rooms
        # How much of its stream's part each record has before it, in 65,536ths, so that few bits are to be sorted;
        # equal ones stay in the order of the streams. (The quotients are rounded down exactly: a divisor of 30 bits
        # keeps one of 16 further from the next integer than float64 rounds.)
        tokens = sums(rooms, found.counts)
        held = np.cumsum(rooms) - rooms - np.repeat(starts_of(tokens), found.counts)
        before = held * 65536.0 / np.repeat(np.maximum(1, tokens), found.counts)
        mixed = np.argsort(before.astype(np.uint16), kind="stable")
        rooms = rooms.take(mixed)
        # Rows end on average half a record too early, or a little more: so much is kept back to fill them with.
        kept_back = math.ceil(rooms.sum() / self.row_tokens)
        placed = rows.fill(rooms[: max(0, len(rooms) - kept_back)])
        table = found.table.take(mixed[: len(placed)], axis=0)
        table[:, 4] = placed
        return table

    def _taken_one_by_one(
        self, cursors: np.ndarray, taken: np.ndarray, need: np.ndarray, shares: np.ndarray, rows: Rows
    ) -> np.ndarray:
        """The records, beside those that are ``taken``, until the rows are full.

        The task that is owed most goes first, so that one of many small streams gets its place in the step, and in
        it the stream that is owed most. A stream whose next record fits into no row any more is done; what it is
        still owed stands in the state and brings it to the front of the next step. Gaps that are left when all
        have their due are filled on credit, and the credit has a bound: short records fit into every gap.
        """
        count = len(self.streams)
        places = cursors + np.bincount(taken[:, 0], minlength=count)
        upcoming = [self._order.following(i, place) for i, place in enumerate(places.tolist())]
        need = need - np.bincount(taken[:, 0], taken[:, 3], count)
        tasks = [(-float(need[members].sum()), task) for task, members in enumerate(self._of_task)]
        heapq.heapify(tasks)
        credit = 2 * self.maximum_tokens
        # Python's own numbers from here on: one of an array costs several times as much.
        owed_less, has_share = (-need).tolist(), (shares > 0).tolist()
        queues = [[(owed_less[i], i) for i in members] for members in self._of_task]
        for queue in queues:
            heapq.heapify(queue)
        chosen: list[int] = []  # five numbers of each
        while tasks and not rows.full:
            less_of_task, task = tasks[0]
            queue = queues[task]
            less, i = queue[0]
            found = next(upcoming[i], None) if less < credit and has_share[i] else None
            row = rows.take(found[2]) if found is not None else None
            if found is not None and row is not None:
                record, epoch, room = found
                chosen += (i, record, epoch, room, row)
                heapq.heapreplace(queue, (less + room, i))
                heapq.heapreplace(tasks, (less_of_task + room, task))
                continue
            heapq.heappop(queue)  # it is done
            if not queue:
                heapq.heappop(tasks)
        return np.array(chosen, dtype=np.int64).reshape(-1, 5)


def _charged(set_aside: np.ndarray, realised: np.ndarray) -> np.ndarray:
    """What streams (S,) are charged for all their tokens so far.

    Of the sums, not step by step: a stream of few records gives nothing in one step and all in another.
    """
    return np.maximum(realised, set_aside // 2)


def _handed_over(owed: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """``owed`` (S,) with that of streams without a share given to the others, by their shares."""
    without = shares == 0
    given = int(owed[without].sum())
    return np.where(without, 0, owed + np.floor(shares * given).astype(np.int64))
