"""What to know of a task's figures: baselines, runs that are left out, how snapshots were chosen."""

from __future__ import annotations

from collections import Counter

from manytune.report.analysis import Analysis
from manytune.report.judgement import given_margin
from manytune.report.names import capital, joined
from manytune.report.published import seen_before
from manytune.report.report_data import rows_used
from manytune.report.sheets import show
from manytune.storage.record import RunState
from manytune.utils.text import counted, listed

LEFT_OUT = {RunState.COLLAPSED: "collapsed", RunState.FAILED: "failed", RunState.PRUNED: "were pruned"}
"""State of a run that is in no mean → how a sentence names it."""


def notes_of(analysis: Analysis) -> tuple[str, ...]:
    """One sentence or two for each thing to know."""
    notes = []
    known = [(each.title, each.scores.get(analysis.metric.name)) for each in analysis.table.baselines]
    scores = [f"{title} {show(score, 'score')}" for title, score in known if score is not None]
    if scores:
        notes.append(f"Without a pretrained model, on the same training and dev rows: {joined(scores)}.")
    if analysis.verdict.judging.seeds.grown:
        notes.append(
            "Seeds were added after a look at the scores that was not planned. The verdict pays for that with a test "
            "that holds however often one looks, which takes more seeds."
        )
    if analysis.waits:
        more = counted(analysis.waits, "seed", "has|have")
        looks = joined(str(look) for look in analysis.verdict.judging.seeds.looks)
        notes.append(f"{more} ended beyond the last planned look (of {looks} seeds), and wait for the next one.")
    for state, what in LEFT_OUT.items():
        runs = [run for run in analysis.records if run.state is state]
        if runs:
            labels = joined(dict.fromkeys(analysis.table.names[run.label] for run in runs))
            notes.append(f"{counted(len(runs), 'run')} {what} ({labels}): left out of all means, named below.")
    for row in analysis.rows:
        if row.stalled:
            seeds = joined((f"seed {run.seed} ({show(run.best_score, 'score')})" for run in row.stalled), most=10)
            notes.append(
                f"{capital(row.name.title)}, {seeds}: little more than a constant prediction, so training did not "
                "take off, and the mean is without it. A lower learning rate or a longer warm-up may mend it."
            )
    if analysis.pending:
        planned = len(analysis.pending) + len(analysis.records)
        pending = counted(len(analysis.pending), "planned run", "has|have", of=planned)
        notes.append(f"{pending} not ended: this is a report so far.")
    for rows, count in Counter(filter(None, map(rows_used, analysis.records))).items():
        notes.append(
            f"{counted(count, 'run')} trained on {rows}, by the study's limit: with all of them scores differ."
        )
    if (data := seen_before(analysis.table.model, analysis.table.task)) is not None:
        notes.append(
            f"This encoder was trained on {data}, labels included, before any of these runs: scores say little of how "
            "it would do on a task that is new to it."
        )
    if "dev" in analysis.selections and analysis.leader is not None:
        notes.append(
            "Each run's best snapshot was chosen on the dev set that scores it, and so was each method's best "
            "configuration: scores are optimistic. With selection: train-split, snapshots are chosen without it."
        )
    if not analysis.predictions and analysis.leader is not None:
        notes.append(
            "Predictions on dev were not kept with this study, so differences are for new seeds on this dev set."
        )
    if given_margin(analysis.table.task, analysis.studies) is None and analysis.verdict.decided:
        margin = show(analysis.verdict.judging.margin, "margin")
        notes.append(f"The margin of {margin} is the default. `report: {{margin: …}}` in the study file sets another.")
    if analysis.misfits:
        notes.append(
            f"{counted(len(analysis.misfits), 'run')} kept a predictions.npz that does not give the recorded score and "
            f"is not used: {listed(analysis.misfits, 5, 200)}. Put back what `manytune run` wrote."
        )
    return (*notes, *analysis.problems)
