"""What differs between two views, how changes add up, and what a browser does with them. Pure.

The law that tests keep: apply(old, difference(old, new)) shows what `new` shows, and merging two changes loses
nothing but points of a chart that were never drawn.
"""

from __future__ import annotations

import msgspec

from dashboard.view import Cell, Change, Event, Layer, NodeRow, ProjectView, Series

MAX_EVENTS_IN_CHANGE = 50
NOTHING = Change()


def difference(old: ProjectView, new: ProjectView) -> Change:
    """The change from `old` to `new`; NOTHING when only the time differs."""
    same_layers = [_frame(layer) for layer in old.layers] == [_frame(layer) for layer in new.layers]
    old_nodes = {node.id: node for node in old.nodes}
    new_nodes = {node.id: node for node in new.nodes}
    nodes: dict[str, NodeRow | None] = {key: node for key, node in new_nodes.items() if old_nodes.get(key) != node}
    nodes.update({key: None for key in old_nodes if key not in new_nodes})
    newest = old.events[0].id if old.events else -1
    points: dict[str, tuple[float, dict[str, float | None]]] = {}
    charts: dict[str, Series] = {}
    for name, series in new.charts.items():
        before = old.charts.get(name)
        if before is None or before.lines.keys() != series.lines.keys() or _starts_anew(before, series):
            charts[name] = series
        elif series.x and _last(series) != _last(before):
            points[name] = (series.x[-1], {line: values[-1] for line, values in series.lines.items()})
    return Change(
        verdict=new.verdict if new.verdict != old.verdict else None,
        tiles=new.tiles if new.tiles != old.tiles else None,
        cells=_changed_cells(old.layers, new.layers) if same_layers else {},
        layers=None if same_layers else new.layers,
        nodes=nodes,
        order=tuple(new_nodes) if tuple(new_nodes) != tuple(old_nodes) else None,
        events=tuple(event for event in new.events if event.id > newest),
        runs=new.runs if new.runs != old.runs else None,
        points=points,
        charts=charts,
    )


def merge(first: Change, second: Change) -> Change:
    """One change for both; the second wins."""
    cells = {prefix: dict(each) for prefix, each in first.cells.items()} if second.layers is None else {}
    for prefix, each in second.cells.items():
        cells.setdefault(prefix, {}).update(each)
    layers = second.layers if second.layers is not None else first.layers
    points = {name: point for name, point in first.points.items() if name not in second.charts} | second.points
    charts = dict(first.charts)
    for name, point in second.points.items():
        if name in charts:  # it starts anew and goes on at once: one point longer
            charts[name] = append(charts[name], point)
            del points[name]
    return Change(
        verdict=second.verdict if second.verdict is not None else first.verdict,
        tiles=second.tiles if second.tiles is not None else first.tiles,
        cells=cells,
        layers=layers,
        nodes=first.nodes | second.nodes,
        order=second.order if second.order is not None else first.order,
        events=(second.events + first.events)[:MAX_EVENTS_IN_CHANGE],
        runs=second.runs if second.runs is not None else first.runs,
        points=points,
        charts=charts | second.charts,
    )


def apply(view: ProjectView, change: Change, at_s: float) -> ProjectView:
    """The view after a change: what a browser does, written down, so that tests can hold both to it."""
    nodes = {node.id: node for node in view.nodes}
    for key, node in change.nodes.items():
        if node is None:
            nodes.pop(key, None)
        else:
            nodes[key] = node
    order = change.order if change.order is not None else tuple(node.id for node in view.nodes)
    layers = change.layers if change.layers is not None else view.layers
    charts = {name: change.charts.get(name, series) for name, series in view.charts.items()}
    for name, series in charts.items():
        if name in change.points:
            charts[name] = append(series, change.points[name])
    events: tuple[Event, ...] = (change.events + view.events)[:MAX_EVENTS_IN_CHANGE]
    return msgspec.structs.replace(
        view,
        at_s=at_s,
        verdict=change.verdict or view.verdict,
        tiles=change.tiles or view.tiles,
        layers=tuple(_with_cells(layer, change.cells.get(layer.prefix, {})) for layer in layers),
        nodes=tuple(nodes[key] for key in order),
        events=events,
        runs=change.runs if change.runs is not None else view.runs,
        charts=charts,
    )


def append(series: Series, point: tuple[float, dict[str, float | None]]) -> Series:
    """A series with one more point; one with the same x as the last replaces it."""
    x, values = point
    keep = len(series.x) - 1 if series.x and series.x[-1] == x else len(series.x)
    lines = {line: (*series.lines[line][:keep], values.get(line)) for line in series.lines}
    return msgspec.structs.replace(series, x=(*series.x[:keep], x), lines=lines)


def _frame(layer: Layer) -> tuple[str, tuple[int, ...], str, int, str]:
    return layer.prefix, layer.grid, layer.architecture, layer.hidden_size, layer.optimizer


def _changed_cells(old: tuple[Layer, ...], new: tuple[Layer, ...]) -> dict[str, dict[str, Cell]]:
    changed = {
        after.prefix: {
            str(index): cell
            for index, (was, cell) in enumerate(zip(before.cells, after.cells, strict=True))
            if was is not cell and was != cell
        }
        for before, after in zip(old, new, strict=True)
    }
    return {prefix: cells for prefix, cells in changed.items() if cells}


def _with_cells(layer: Layer, changed: dict[str, Cell]) -> Layer:
    if not changed:
        return layer
    cells = list(layer.cells)
    for index, cell in changed.items():
        cells[int(index)] = cell
    return msgspec.structs.replace(layer, cells=tuple(cells))


def _starts_anew(before: Series, after: Series) -> bool:
    """Whether x went back, so that appending would draw a line backwards."""
    return bool(before.x) and (not after.x or after.x[-1] < before.x[-1])


def _last(series: Series) -> tuple[float | None, ...]:
    return (series.x[-1], *(values[-1] for values in series.lines.values())) if series.x else ()
