"""A plan of three variants over the small recipe, and the runs of a plan."""

from __future__ import annotations

from benchmarks.ablation.__main__ import PLAN
from benchmarks.ablation.plan import Plan, Run, read_plan, runs_of

SHIPPED = read_plan(PLAN)


PLAN_TEXT = """
recipe: {recipe}
variants:
  mmlm: {{title: MMLM, set: ["tasks={{mmlm: {{}}}}", evaluation.before=true]}}
  wrong: {{title: + nothing, set: ["tasks={{mmlm: {{}}, tlm: {{weight: 1e-9}}, camlm: {{}}}}"]}}
  camlm: {{title: + CAMLM, set: ["tasks={{mmlm: {{}}, camlm: {{}}}}"]}}
presets:
  quick:
    seeds: [1, 2]
    launcher: python
    deepspeed_config: ds_configs/zero1.json
    set: [steps=3, evaluation.before=false]
"""


def runs_in(plan: Plan, seeds: tuple[int, ...] = (1, 2), *more: str, store: str = "s") -> list[Run]:
    return runs_of(plan, plan.presets["quick"], seeds, more, store)
