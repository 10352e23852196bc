"""One iteration's steps, the judges, the evaluation, its figures and gates."""
