"""Reports for people: contact sheets, animations, plots, HTML pages and the report of a run."""
