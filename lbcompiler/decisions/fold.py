"""Which rotations are folded away: those whose input a linear can make rotated (`FoldRotations`).

Decided last, of the layers as they were chosen. The reader's codes and error are the same as with
its rotation on the way, which costs time at run time; the linear before it gets other rows to
quantize, in the format and by the quantizer that were chosen for it. So the fold is kept unless the
measured error of that linear rises."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lbcompiler.decisions.candidate_store import CandidateStore
from lbcompiler.decisions.candidates import Choice, GroupProblem, Options, Solution, again
from lbcompiler.formats import Quantized
from lbcompiler.ir.model import Array
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes.fold_rotations import Producer


@dataclass(frozen=True)
class Fold:
    """Of the input of `readers`; weight: the codes of `producer`, None where it is in float."""

    readers: tuple[str, ...]
    producer: str
    rotation: Rotation
    weight: Callable[[], Quantized] | None = None


@dataclass(frozen=True)
class Folder:
    """problem: of one layer with this weight instead of its own; seed: of rotations' signs."""

    producers: Mapping[str, Producer | str]
    problem: Callable[[str, Array], GroupProblem]
    weight: Callable[[str], Array]
    options: Options
    store: CandidateStore

    def folds(
        self, groups: Mapping[str, tuple[str, ...]], chosen: Mapping[str, Solution | None]
    ) -> list[Fold]:
        """groups: the layers that are decided of each group, and what was chosen for it."""
        of_layer = {layer: chosen.get(g) for g, layers in groups.items() for layer in layers}
        found = (self._fold(groups[g], s, of_layer) for g, s in chosen.items() if s is not None)
        return [fold for fold in found if fold is not None]

    def _fold(
        self,
        readers: tuple[str, ...],
        solution: Solution,
        of_layer: Mapping[str, Solution | None],
    ) -> Fold | None:
        choice, producer = solution.choice, self.producers[readers[0]]
        if not choice.hadamard or choice.outliers or isinstance(producer, str):
            return None
        rotation = Rotation(choice.hadamard, self.options.seed)
        if set(producer.readers) != set(readers) or not producer.takes(rotation):
            return None
        before = of_layer.get(producer.layer)
        fold = Fold(readers, producer.layer, rotation)
        if before is None:
            return fold
        store = replace(self.store, folder=f"{self.store.folder}/{rotation.name}")
        found = self._solved(producer, rotation, before.choice, store)
        if found.error > found.plain_error:
            return None
        return replace(fold, weight=lambda: store.weights(producer.layer, found)[0])

    def _solved(
        self, producer: Producer, rotation: Rotation, choice: Choice, store: CandidateStore
    ) -> Solution:
        """The producer with its rows rotated, whose weights are kept; `plain` is without that."""
        layer, names = producer.layer, [choice.name]
        known = store.load(layer, names)
        if known is None:
            weight = self.weight(layer)
            plain = again(self.problem(layer, weight), choice, self.options)
            turned = self.problem(layer, producer.rotated(weight, rotation))
            solution = again(turned, choice, self.options)
            known = store.save(layer, names, [replace(solution, plain=plain)])
        return known[0]
