"""The report as one page for the browser: self-contained, and nothing in it asks a network."""

from __future__ import annotations

from rift.report.web.contents import page_jobs, page_sections
from rift.report.web.naming import numbered
from rift.report.web.page import PageTable, write_page

__all__ = ["PageTable", "numbered", "page_jobs", "page_sections", "write_page"]
