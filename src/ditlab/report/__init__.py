"""What people look at: contact sheets, plots, pages, the report of a run."""
