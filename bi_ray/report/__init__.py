"""The report of a run or a study: a page, a summary, a picture and tables."""
