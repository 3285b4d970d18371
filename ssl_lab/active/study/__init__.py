"""Whether it was worth it: queries side by side, and what their numbers may say."""

from ssl_lab.active.study import benchmark as benchmark
from ssl_lab.active.study import show as show
