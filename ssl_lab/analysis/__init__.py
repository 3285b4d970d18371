"""What a trained net is like: functions of (net, images), or of a run's numbers. `recipes/analyze.py` has them all on
one page, with what each number means and what it cannot tell."""

from ssl_lab.analysis import robustness as robustness
from ssl_lab.analysis.curvature import Spectrum, spectrum, spectrum_by_class
from ssl_lab.analysis.depth import effective_depth
from ssl_lab.analysis.flatness import local_energy, sharpness
from ssl_lab.analysis.landscape import Landscape
from ssl_lab.analysis.margin import safe_radius
from ssl_lab.analysis.memorization import Memorized, memorization
from ssl_lab.analysis.noise import fractal_dimension, gradient_noise, hurst_exponent, hurst_exponents
from ssl_lab.analysis.rates import effective_rates
from ssl_lab.analysis.slingshot import Slingshot, slingshots
from ssl_lab.analysis.transfer import transfer_correlation

__all__ = ["Landscape", "Memorized", "Slingshot", "Spectrum", "effective_depth", "effective_rates",
           "fractal_dimension", "gradient_noise", "hurst_exponent", "hurst_exponents", "local_energy", "memorization",
           "safe_radius", "sharpness", "slingshots", "spectrum", "spectrum_by_class", "transfer_correlation"]
