"""What is wrong with a data set: labels, duplicates, leaks, foreign and odd images."""

from ssl_lab.auditing.findings import KINDS, Audit, Doubts, Issue, audit
from ssl_lab.auditing.looks import Odd
from ssl_lab.auditing.pairs import Bar, Pairs

__all__ = ["KINDS", "Audit", "Bar", "Doubts", "Issue", "Odd", "Pairs", "audit"]
