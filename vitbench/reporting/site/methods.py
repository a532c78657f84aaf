"""The page that names how every number of the report is computed."""

from __future__ import annotations

from vitbench.reporting.site.content import Cell, Facts, Lines, Page, Section

_SCORES = [
    (
        "score",
        "The task's own metric, named in each title or note; the mean over seeds. A seed is one draw of the support set: K "
        "images per class by big_vision's sampler. 0 shots are all train images.",
    ),
    ("± in leaderboards", "Standard deviation over seeds (n − 1), in percentage points."),
    (
        "95 % interval",
        "Two-way random effects over support sets and test images (the variance of a mean over S seeds × N images), in the form "
        "of Wilson's score interval. With one seed it covers test images only, and its method says so. Where predictions cannot "
        "be read it is Student's t interval over seeds.",
    ),
    ("chance", "The expected score of a guess that is uniform over the classes."),
    ("mean over tasks", "Made within each seed first; only for rows that have every task."),
    (
        "bands of a mean over tasks",
        "The tasks' intervals are independent, so the squares of their half widths add; divided by the number of tasks.",
    ),
    (
        "published numbers",
        "Other people's, from their papers and code, each with its source; never ranked with what was measured.",
    ),
]

_COMPARISONS = [
    (
        "paired difference",
        "The same support sets and the same test images on both sides; two-way random effects on the difference, image by image "
        "and seed by seed. What both find hard or easy drops out.",
    ),
    ("mean over these tasks", "The tasks' variances add; their degrees of freedom after Satterthwaite."),
    ("tasks like these", "Student's t test over the tasks' differences: the tasks are taken as a sample."),
    (
        "p (Holm)",
        "Corrected for all comparisons of the same protocol and shot in this report; below 0.05 a mark is filled.",
    ),
    ("win, tie, loss", "A task whose own 95 % interval of the difference does not hold 0, or does."),
]

_DIAGNOSTICS = [
    ("confusion matrix", "Rows are labels, columns predictions, counts over all seeds; shades are shares of the row."),
    ("precision, F1", "Of each class, from the predictions of all seeds together; macro F1 is their mean."),
    (
        "confidence",
        "The estimated probability that a prediction is right, by the protocol's closed form. Expected calibration error: 10 "
        "bins of equal width (Guo et al. 2017).",
    ),
    (
        "gallery",
        "Test images of the first seed as they are stored, before preprocessing; drawn at random with a fixed seed.",
    ),
    ("Pareto front", "The rows that no other row beats in score without a higher cost."),
]


def methods_page() -> Page:
    """How every number of the report is computed."""
    sections = [
        Section(heading, [Facts([(term, [Cell(text)]) for term, text in items])])
        for heading, items in (("Scores", _SCORES), ("Comparisons", _COMPARISONS), ("Right and wrong", _DIAGNOSTICS))
    ]
    rules = [
        "No test label chooses a hyper-parameter: λ is fixed, or from leave-one-out on the support set or a validation split.",
        "Limited runs are marked and never mixed with full ones.",
        "Two records of one identity with different scores are a conflict: neither is used.",
        "A pooler with newly initialised weights is marked untrained wherever it is shown.",
    ]
    sections.append(Section("Rules", [Lines(rules)]))
    lead = "The formulas are derived in vitbench's docs/methodology.md."
    return Page("methods.html", "Methods", sections, lead=lead, area="Methods")
