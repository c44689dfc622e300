import random

import pytest

from bi_ray.tasks.igsm.dependencies import Shape, draw_draft
from bi_ray.tasks.igsm.structure import MAX_EDGES, draw_structure


def drafts(ops, redundant, count):
    uniform = random.Random(f"{ops}/{redundant}").random
    found = []
    while len(found) < count:
        if draft := draw_draft(uniform, ops, redundant, Shape()):
            found.append(draft)
    return found


def needed_by_question(draft):
    found, waiting = set(), [draft.question]
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.add(place)
            waiting += draft.operands[place]
    return found


@pytest.mark.parametrize("ops", [*range(1, 9), 12, 16, 20, 25, 32, 40])
def test_operations_are_exact_and_all_that_is_counted_is_needed(ops):
    for draft in drafts(ops, 3, 40):
        needed = needed_by_question(draft)
        counts = [
            len(places) + number
            for places, number in zip(draft.operands, draft.numbers, strict=True)
        ]
        assert sum(max(1, counts[place] - 1) for place in needed) == ops
        assert len(needed) == draft.needed
        assert len(draft.quantities) - draft.needed <= 3
        assert max(counts) <= 4
        assert min(counts) >= 1
        assert len(set(draft.quantities)) == len(draft.quantities)
        for place, places in enumerate(draft.operands):
            assert all(operand < place for operand in places)
            assert len(set(places)) == len(places)


def test_an_abstract_quantity_takes_all_that_its_holder_holds():
    seen = 0
    for draft in drafts(16, 2, 200):
        edges = draft.structure.edges
        for quantity, places, number in zip(
            draft.quantities, draft.operands, draft.numbers, strict=True
        ):
            if quantity < len(edges):
                continue
            seen += 1
            assert not number
            holder, depth = divmod(quantity - len(edges), 3)
            used = [draft.quantities[place] for place in places]
            direct = used if depth == 0 else used[::2]
            assert [edges[edge][0] for edge in direct] == [holder] * len(direct)
            assert direct == draft.structure.below[holder]
            if depth:  # how many of each, times what each of these holds, one layer nearer
                assert used[1::2] == [
                    len(edges) + 3 * edges[edge][1] + depth - 1 for edge in direct
                ]
    assert seen > 400


@pytest.mark.parametrize("wanted", [1, 5, 13, 25, MAX_EDGES])
def test_structures_have_the_edges_that_are_wanted_between_neighboring_layers(wanted):
    uniform = random.Random(wanted).random
    layers = set()
    for _ in range(200):
        structure = draw_structure(uniform, wanted)
        sizes = [structure.layer.count(layer) for layer in range(max(structure.layer) + 1)]
        layers.add(len(sizes))
        assert 2 <= len(sizes) <= 4
        assert all(2 <= size <= 4 for size in sizes)
        assert len(structure.edges) >= wanted
        assert structure.edges == sorted(set(structure.edges))
        assert all(structure.layer[b] == structure.layer[a] + 1 for a, b in structure.edges)
        held = {b for _, b in structure.edges}
        assert held == {item for item, layer in enumerate(structure.layer) if layer}
    assert max(layers) == 4
    assert min(layers) == (2 if wanted <= 5 else 4 if wanted == MAX_EDGES else 3)
