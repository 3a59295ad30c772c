"""training.report: the page holds what telemetry recorded, and only asks for a run folder."""

from __future__ import annotations

import base64
import io
import math
import re
import subprocess
import sys

import pytest

from data.recipe import UserError
from training.metrics import Telemetry
from training.report import main
from training.report_page import write_report


def record(folder, *, steps=30, evaluations=(0, 15, 30), floors=True):
    telemetry = Telemetry(folder, tensorboard=False, out=io.StringIO())
    for step in range(1, steps + 1):
        telemetry.step(
            {
                "step": step, "tokens": 4096 * step, "loss": 10 / step, "loss/mmlm": 6 / step,
                "loss/camlm": math.nan, "share/mmlm": 0.61, "budget/mmlm": 0.6, "share/camlm": 0.39,
                "budget/camlm": 0.4, "step_seconds": 2.0, "learning_rate": 1e-3 / step, "grad_norm": 1.0,
                "tokens_per_second": 5000, "temperature": 0.05,
            }
        )  # fmt: skip
    for step in evaluations:
        scores = {"mean": 0.1 + step / 100, "language/de": 0.2 + step / 100, "de-en": 0.3}
        telemetry.evaluation(step, {f"retrieval/held_out/{k}": v for k, v in scores.items()})
        telemetry.evaluation(step, {"masked/mmlm/accuracy": 0.3, "masked/mmlm/accuracy/de": 0.3})
    if floors:
        scores = {"mean": 0.077, "language/de": 0.08}
        scalars = {f"retrieval/held_out/{k}": v for k, v in scores.items()}
        telemetry.event("floor", name="character 3-grams", scalars=scalars)
    telemetry.event("skip", step=7, reason="<not finite>")
    telemetry.close()


def figures(page):
    found = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)">', page)
    return {title: base64.b64decode(data).decode() for title, data in found}


def test_page_shows_losses_shares_retrieval_floors_and_events(tmp_path):
    record(tmp_path)
    (tmp_path / "recipe.resolved.yaml").write_text("name: demo  # <recipe>\n")
    page = write_report(tmp_path).read_text()
    drawn = figures(page)
    assert set(drawn) == {
        "Loss per task", "Share of the tokens, and budget", "Learning rate", "Gradient norm",
        "Tokens per second", "Temperature of the comparisons", "Retrieval accuracy@1: held_out",
        "Accuracy at masked tokens, held out",
    }  # fmt: skip
    assert ">mmlm<" in drawn["Loss per task"] and ">camlm<" not in drawn["Loss per task"]  # never finite
    assert ">camlm<" in drawn["Share of the tokens, and budget"]
    assert ">character 3-grams<" in drawn["Retrieval accuracy@1: held_out"]
    assert ">de<" in drawn["Retrieval accuracy@1: held_out"]
    rows = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert ["", "after step 0", "after step 30", "character 3-grams"] in rows
    assert ["mean", "10.0%", "40.0%", "7.7%"] in rows
    assert ["de", "20.0%", "50.0%", "8.0%"] in rows
    assert ["tokens", "122,880"] in rows and ["time in steps", "1:00"] in rows
    assert "&lt;not finite&gt;" in page and "&lt;recipe&gt;" in page


def test_page_needs_nothing_from_elsewhere_and_is_the_same_each_time(tmp_path):
    record(tmp_path)
    page = write_report(tmp_path).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    assert write_report(tmp_path).read_text() == page


@pytest.mark.parametrize(
    "recorded",
    [{"evaluations": ()}, {"evaluations": (0,)}, {"steps": 0}, {"steps": 1, "floors": False}, {"steps": 1}],
)
def test_page_of_a_run_that_has_only_begun(tmp_path, recorded):
    record(tmp_path, **recorded)
    assert "</html>" in write_report(tmp_path).read_text()


def test_folder_without_a_run_is_one_message_and_exit_2(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl"):
        write_report(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "training.report", str(tmp_path / "nowhere")], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_command_prints_where_the_page_lies(tmp_path, capsys):
    record(tmp_path, steps=2)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    for arguments, status in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == status


def test_rejected_mixed_texts_are_added_up_by_language_and_by_reason(tmp_path):
    telemetry = Telemetry(tmp_path, tensorboard=False, out=io.StringIO())
    for step, of_german in ((1, 2), (2, 0), (3, 5)):
        counts = {
            "mixed/rejected": of_german + 1,
            "mixed/rejected_share": 0.4,
            "mixed/one_language": of_german,
        }
        counts |= {"mixed/rejected/fr": 1, "mixed/one_language/fr": 0}
        if of_german:
            counts |= {"mixed/rejected/de": of_german, "mixed/one_language/de": of_german}
        telemetry.step({"step": step, **counts})
    telemetry.close()
    page = write_report(tmp_path).read_text()
    assert "<td>10, 7 of them since the model wrote in no second language</td>" in page
    assert "<td>de</td><td>7</td><td>7</td>" in page and "<td>fr</td><td>3</td><td>0</td>" in page
    assert "Mixed text: share of the records rejected" in figures(page)
    record(tmp_path / "without")
    assert "Mixed texts rejected" not in write_report(tmp_path / "without").read_text()


def test_what_was_sampled_decided_and_why_it_ended_stands_on_the_page(tmp_path):
    telemetry = Telemetry(tmp_path, tensorboard=False, out=io.StringIO())
    for step in range(1, 6):
        telemetry.step(
            {
                "step": step, "loss": 1.0, "share/mmlm": 0.5, "budget/mmlm": 0.5, "sampling/budget/mmlm": 0.5,
                "sampling/language_temperature": 0.8 - step / 10, "sampling/pair_temperature": 0.3,
            }
        )  # fmt: skip
    telemetry.evaluation(5, {"masked/mmlm/loss": 5.5, "masked/camlm/loss": 6.5})
    shares = {"mmlm/de": [0.31, 0.312], "mmlm/fr": [0.69, 0.6], "camlm/de": [1.0, 1.0]}
    telemetry.event("shares", step=5, shares=shares)
    telemetry.event("convergence", step=5, complete=True)
    telemetry.event("complete", step=5, reason="both tasks had converged")
    telemetry.close()
    page = write_report(tmp_path).read_text()
    drawn = figures(page)
    assert "Temperature of the sampling" in drawn and "Loss at masked tokens, held out" in drawn
    assert "Budgets in force" not in drawn  # they never changed
    assert "<td>complete</td><td>both tasks had converged</td>" in page
    assert "<td>de</td><td>31.0%</td><td>100.0%</td>" in page
    assert "<td>fr</td><td>69.0% / 60.0%</td><td>-</td>" in page
    assert "<td>convergence</td>" in page and "<td>shares</td>" not in page
