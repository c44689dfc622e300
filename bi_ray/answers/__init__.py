"""Reading the answer out of a response, and comparing it with the right one."""
