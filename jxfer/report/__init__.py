"""What people read of a run or a sweep: tables, figures and a page."""
