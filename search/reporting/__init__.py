"""`report.html`: what a run found, as one page that opens anywhere. `content` gathers it, `page` writes it down."""
