"""Elementwise functions of one variable in a form that does not depend on how an exporter wrote them.

A function is a polynomial in atoms, an atom being the variable or a named function of another polynomial:
0.5 · x · (1 + erf(x / √2)), whatever its grouping, order and divisions, becomes 0.5 · x + 0.5 · x · erf(0.7071 · x).
Two functions are the same if their polynomials are, coefficients compared to a tolerance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Monomial = tuple[int, ...]
"""Indices of atoms, ascending, an atom to the third power three times."""
Polynomial = dict[Monomial, float]
MOST_TERMS = 16
INFINITY = math.inf


@dataclass(frozen=True)
class Atom:
    """The variable, where `name` is empty, or the function `name` with `parameters` of `argument`."""

    name: str
    parameters: tuple[float, ...]
    argument: tuple[tuple[Monomial, float], ...]


class TooLongError(Exception):
    """A product has more than MOST_TERMS terms."""


class ScalarFunctions:
    """Polynomials over a common list of atoms; `tolerance` is relative and that of the coefficients."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.atoms = [Atom("", (), ())]

    @property
    def variable(self) -> Polynomial:
        """x."""
        return {(0,): 1.0}

    def add(self, *terms: Polynomial) -> Polynomial:
        """The sum."""
        total: Polynomial = {}
        for term in terms:
            for monomial, coefficient in term.items():
                total[monomial] = total.get(monomial, 0.0) + coefficient
        return {monomial: coefficient for monomial, coefficient in total.items() if coefficient != 0}

    def multiply(self, *factors: Polynomial) -> Polynomial:
        """The product, multiplied out; raises TooLongError."""
        product: Polynomial = {(): 1.0}
        for factor in factors:
            parts = [
                {tuple(sorted(m + n)): a * b for n, b in factor.items()}  # n differ, so do the sorted products
                for m, a in product.items()
            ]
            product = self.add(*parts)
            if len(product) > MOST_TERMS:
                raise TooLongError
        return product

    def scale(self, factor: float, polynomial: Polynomial) -> Polynomial:
        """A constant times `polynomial`."""
        return {monomial: factor * coefficient for monomial, coefficient in polynomial.items()}

    def apply(self, name: str, argument: Polynomial, *parameters: float) -> Polynomial:
        """The function `name` of `argument`."""
        for index, atom in enumerate(self.atoms):
            if atom.name == name and atom.parameters == parameters and self.same(dict(atom.argument), argument):
                return {(index,): 1.0}
        self.atoms.append(Atom(name, parameters, tuple(argument.items())))
        return {(len(self.atoms) - 1,): 1.0}

    def clip(self, argument: Polynomial, low: float, high: float) -> Polynomial:
        """min(max(argument, low), high); a clip of a clip is one clip."""
        inner = self.atom_of(argument)
        if inner is not None and inner.name == "clip":
            low, high = (min(max(bound, low), high) for bound in inner.parameters)
            argument = dict(inner.argument)
        return self.apply("clip", argument, low, high)

    def with_unit_clips(self, polynomial: Polynomial) -> Polynomial:
        """The same with clips to [low, high] written as low + (high − low) · clip to [0, 1]; raises TooLongError."""
        parts = []
        for monomial, coefficient in polynomial.items():
            parts.append(self.scale(coefficient, self.multiply(*(self._unit(index) for index in monomial))))
        return self.add(*parts)

    def _unit(self, index: int) -> Polynomial:
        atom = self.atoms[index]
        if atom.name != "clip" or not (-INFINITY < atom.parameters[0] < atom.parameters[1] < INFINITY):
            return {(index,): 1.0}
        low, high = atom.parameters
        argument = self.scale(1 / (high - low), self.add(dict(atom.argument), {(): -low}))
        return self.add({(): low}, self.scale(high - low, self.apply("clip", argument, 0.0, 1.0)))

    def atom_of(self, polynomial: Polynomial) -> Atom | None:
        """The atom that `polynomial` is, if it is one and nothing else."""
        if len(polynomial) != 1:
            return None
        ((monomial, coefficient),) = polynomial.items()
        return self.atoms[monomial[0]] if len(monomial) == 1 and coefficient == 1 else None

    def same(self, a: Polynomial, b: Polynomial) -> bool:
        """True where both have the same terms with the same coefficients, to the tolerance."""
        return a.keys() == b.keys() and all(math.isclose(v, b[m], rel_tol=self.tolerance) for m, v in a.items())
