"""A record of allocations by layer, and its extension from a few layers to many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Segment(NamedTuple):
    """Where in the run an event happens."""

    step: str
    """`setup`, `first`, `second`, `evaluation`, …"""
    kind: str
    """`start`, `weights`, `optimizer`, `forward`, `loss`, `backward`, `end`."""
    layer: int | None
    """None outside the decoder layers."""


START = Segment("setup", "start", None)


class Name(NamedTuple):
    """An allocation: the segment in which it appeared, and its number there, among those of the same use once that is known."""

    segment: Segment
    number: int
    use: str = ""
    """Where it is freed, relative to its layer."""


@dataclass(slots=True)
class Trace:
    """Events in order, each under its segment: a size allocates, None frees."""

    segment: Segment = START
    events: list[tuple[Segment, Name, int | None]] = field(default_factory=list)
    _names: list[Name] = field(default_factory=list)
    _counts: dict[Segment, int] = field(default_factory=dict)
    _is_stopped: bool = False

    def allocate(self, num_bytes: int) -> int:
        """Write an allocation down and return its number."""
        number = self._counts.get(self.segment, 0)
        self._counts[self.segment] = number + 1
        name = Name(self.segment, number)
        self._names.append(name)
        if not self._is_stopped:
            self.events.append((self.segment, name, num_bytes))
        return len(self._names) - 1

    def free(self, number: int) -> None:
        """Write down that an allocation vanished."""
        if not self._is_stopped:
            self.events.append((self.segment, self._names[number], None))

    def stop(self) -> None:
        """Write nothing more down: what vanishes now is the program's end."""
        self._is_stopped = True

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return {"events": [[*segment, *name.segment, name.number, size] for segment, name, size in self.events]}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Trace:
        """The record that `as_dict` made."""
        trace = cls()
        for row in value["events"]:
            trace.events.append((Segment(*row[:3]), Name(Segment(*row[3:6]), row[6]), row[7]))
        return trace

    def blocks(self) -> list[tuple[Segment, list[tuple[Name, int | None]]]]:
        """The events grouped by runs of one segment, in order."""
        groups: list[tuple[Segment, list[tuple[Name, int | None]]]] = []
        for segment, name, size in self._events_by_use():
            if not groups or groups[-1][0] != segment:
                groups.append((segment, []))
            groups[-1][1].append((name, size))
        return groups

    def _events_by_use(self) -> Iterator[tuple[Segment, Name, int | None]]:
        """The events under names that count by use.

        Layers of two kinds (with a window or a rotation and without) differ in what they allocate, but not in what they hand on: the first
        tensor that goes to the next layer is the same thing in both, whatever its number.
        """
        freed = {name: segment for segment, name, size in self.events if size is None}
        counts: dict[tuple[Segment, str], int] = {}
        names: dict[Name, Name] = {}
        for segment, name, size in self.events:
            if size is not None:
                use = _use(name.segment, freed.get(name))
                counts[name.segment, use] = number = counts.get((name.segment, use), -1) + 1
                names[name] = Name(name.segment, number, use)
            yield segment, names.get(name, name), size


def _use(owner: Segment, freed: Segment | None) -> str:
    if freed is None:
        return "kept"
    away = "" if owner.layer is None or freed.layer is None else freed.layer - owner.layer
    return f"{freed.step} {freed.kind} {away}"


@dataclass(frozen=True, slots=True)
class Depth:
    """How the few layers that were run stand for the many of the model."""

    templates: tuple[int, ...]
    """For every layer of the model, the one that was run in its place."""

    @property
    def num_run(self) -> int:
        """Layers to run."""
        return self.templates[-1] + 1 if self.templates else 0

    @classmethod
    def of(cls, num_recomputed: int, num_kept: int) -> Depth:
        """Of each kind at most four: the first two, the last, and one for all between, whose neighbours are like itself."""
        templates: list[int] = []
        for count in (num_recomputed, num_kept):
            first = templates[-1] + 1 if templates else 0
            if count <= 4:
                templates += range(first, first + count)
            else:
                templates += [first, first + 1, *[first + 2] * (count - 3), first + 3]
        return cls(tuple(templates))

    def num_kept_run(self, num_kept: int) -> int:
        """Kept layers among those to run."""
        return min(num_kept, 4)


def extended(trace: Trace, depth: Depth) -> Iterator[tuple[Any, int | None]]:
    """The events of the whole model: (key, size), or (key, None) where it is freed.

    A layer between repeats the events of its template. What a layer frees of a neighbour is freed of its own neighbour; what is freed
    outside the layers is freed for every layer that the template stands for.
    """
    layers_of: dict[int, list[int]] = {}
    for layer, template in enumerate(depth.templates):
        layers_of.setdefault(template, []).append(layer)
    for run in _runs(trace.blocks()):
        if run[0][0].layer is None:
            for _, events in run:
                yield from _outside(events, layers_of)
            continue
        by_template = {segment.layer: events for segment, events in run}
        order = list(range(len(depth.templates)))
        if len(run) > 1 and (run[0][0].layer or 0) > (run[-1][0].layer or 0):
            order.reverse()
        for layer in order:
            template = depth.templates[layer]
            for name, size in by_template.get(template, ()):
                yield _key(name, layer, template, depth), size


def _runs(blocks: Sequence[tuple[Segment, list[tuple[Name, int | None]]]]) -> Iterator[list[tuple[Segment, list[tuple[Name, int | None]]]]]:
    """Groups of one pass over the layers; a layer that comes up twice in a pass is joined to its first appearance."""
    current: list[tuple[Segment, list[tuple[Name, int | None]]]] = []
    for segment, events in blocks:
        if current and (segment.layer is None or (segment.step, segment.kind) != (current[0][0].step, current[0][0].kind)):
            yield current
            current = []
        if segment.layer is None:
            yield [(segment, events)]
            continue
        same = next((entry for entry in current if entry[0] == segment), None)
        if same is not None:
            same[1].extend(events)
        else:
            current.append((segment, list(events)))
    if current:
        yield current


def _key(name: Name, layer: int, template: int, depth: Depth) -> Any:
    owner = name.segment.layer
    if owner is None:
        return name
    wanted = layer + owner - template
    return Name(name.segment._replace(layer=min(max(wanted, 0), len(depth.templates) - 1)), name.number, name.use)


def _outside(events: Sequence[tuple[Name, int | None]], layers_of: dict[int, list[int]]) -> Iterator[tuple[Any, int | None]]:
    for name, size in events:
        owner = name.segment.layer
        if owner is None:
            yield name, size
        else:
            for layer in layers_of.get(owner, ()):
                yield Name(name.segment._replace(layer=layer), name.number, name.use), size
