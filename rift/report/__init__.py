"""Tables and figures from result files alone; nothing here trains, and nothing here imports torch."""

from __future__ import annotations

from rift.report.conclusion import conclusion_in_brief, conclusion_lines, print_conclusion
from rift.report.job import job_frame, job_title, print_job, print_job_table
from rift.report.page import job_report
from rift.report.results import Job, read_jobs, read_summary
from rift.report.study import jobs_frame, one_job_per_seed, study_frame

__all__ = [
    "Job",
    "conclusion_in_brief",
    "conclusion_lines",
    "job_frame",
    "job_report",
    "job_title",
    "jobs_frame",
    "one_job_per_seed",
    "print_conclusion",
    "print_job",
    "print_job_table",
    "read_jobs",
    "read_summary",
    "study_frame",
]
