"""Judging a registered pair: rules, measures, the page and the cohort."""
