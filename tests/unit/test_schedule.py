"""The order of a step: topological, work for other tasks as soon as they need it, a task's own work depth first while it waits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.prune import prune
from mpirt.compiler.schedule import schedule
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.ops.apply import apply_op
from tests.unit.planning import Step, steps

HERE, THERE = (DeviceName(Task("worker", i), "CPU", 0) for i in (0, 1))


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


@settings(max_examples=150)
@given(steps())
def test_every_operation_comes_once_and_after_all_it_depends_on(step: Step) -> None:
    needed, fed = step.needed(), set(step.feeds)
    order = schedule(needed, step.placement(), fed)
    assert sorted(order, key=lambda op: op.index) == needed
    position = {op: i for i, op in enumerate(order)}
    for op in order:
        assert all(position[t.op] < position[op] for t in op.inputs if t not in fed)
        assert all(position[c] < position[op] for c in op.control_inputs)


MESSAGE = 4  # what the order takes a message for, in operations
PATIENCE = 32  # for so many a task's own work gives way


def behind(ref: Tensor) -> Operation:
    """The variable that a tensor is."""
    return ref.op if ref.op.type == "VariableV2" else behind(ref.op.inputs[0])


def changed(op: Operation) -> Operation | None:
    return behind(op.inputs[0]) if op.type == "AssignAdd" else None


class Rule:
    """What the order is made from, straight from its definition: who needs what, and what that is to each."""

    def __init__(self, step: Step, alone: bool = False) -> None:
        self.needed, fed = step.needed(), set(step.feeds)
        self.fed = fed
        self.placement = step.placement() if not alone else dict.fromkeys(step.placement(), HERE)
        self.task = {op: device.task for op, device in self.placement.items()}
        self.data = {op: {t.op for t in op.inputs if t not in fed} for op in self.needed}
        self.producers = {op: self.data[op] | {c for c in op.control_inputs if c in self.task and c in self.needed} for op in self.needed}
        self.consumers = {op: [c for c in self.needed if op in self.producers[c]] for op in self.needed}
        self.order = schedule(self.needed, self.placement, fed)
        self.soonest: dict[Operation, int] = {}
        for op in self.needed:
            self.soonest[op] = 1 + max([self.soonest[p] for p in self.producers[op]], default=0)
        self.way: dict[Operation, int] = {}
        self.leads: set[Operation] = set()  # to something that is read
        self.due: dict[Operation, int] = {}  # only of work for others
        for op in reversed(self.needed):
            self.way[op] = 1 + max([self.way[c] + self.message(op, c) for c in self.consumers[op]], default=0)
            if any(op in self.data[c] or c in self.leads for c in self.consumers[op]):
                self.leads.add(op)
            need = [c for c in self.consumers[op] if c in self.due or self.message(op, c) and (op in self.data[c] or c in self.leads)]
            if need:
                starts = [self.due.get(c, self.soonest[c]) - 1 - self.message(op, c) for c in need]
                self.due[op] = max(self.soonest[op], min(starts))
        looked_at = {op: self.looked_at(op) for op in self.needed}
        held = {op for op in self.needed if op not in self.due and any(changed(op) in each for each in looked_at.values())}
        before: dict[Operation, int] = {}  # of those, one behind the other on the way
        for op in self.needed:
            before[op] = max([before[p] + (p in held) for p in self.producers[op]], default=0)
        place = {op: (before[op], op in held, op.index) for op in self.needed}
        self.waits: dict[Operation, set[Operation]] = {}  # who comes before a change that is own work, to look at the variable
        for op in self.needed:
            self.waits[op] = {o for o in self.needed if changed(op) in looked_at[o] and place[o] < place[op]} if op in held else set()

    def looked_at(self, op: Operation) -> set[Operation | None]:
        """Variables whose array an operation that doesn't change them computes with."""
        inputs = [t for t in op.inputs[changed(op) is not None :] if t not in self.fed]
        found = {behind(t) for t in inputs if t.dtype.is_ref}
        for tensor in inputs:
            if tensor.op.type == "Identity":
                variable = behind(tensor.op.inputs[0])
                if self.task[op] == self.task[tensor.op] == self.task[variable]:
                    found.add(variable)
        return {*found} - {changed(op)}

    def message(self, op: Operation, consumer: Operation) -> int:
        return MESSAGE if self.task[op] != self.task[consumer] else 0

    def arrival(self, op: Operation, ends: dict[Operation, int]) -> int:
        return max([ends[p] + MESSAGE for p in self.producers[op] if self.message(p, op)], default=0)


@settings(max_examples=100)
@given(steps())
def test_work_for_others_comes_when_it_is_due_and_then_the_longer_way_first(step: Step) -> None:
    rule = Rule(step)
    order = [op for op in rule.order if op in rule.due]
    assert order == sorted(order, key=lambda op: (rule.due[op], -rule.way[op], op.index))


@settings(max_examples=150)
@given(steps())
def test_own_work_runs_while_work_for_others_must_wait_and_only_then(step: Step) -> None:
    rule = Rule(step)
    ends: dict[Operation, int] = {}
    clock = dict.fromkeys(rule.task.values(), 0)
    for i, op in enumerate(rule.order):
        task = rule.task[op]
        start = max(clock[task], rule.arrival(op, ends))
        behind = [other for other in rule.order[i + 1 :] if rule.task[other] == task]
        others = [other for other in behind if other in rule.due]
        if op in rule.due:
            for own in behind:
                elsewhere = any(rule.task[look] != task for look in rule.waits[own])  # whose end nobody here can tell
                if own not in rule.due and not elsewhere and rule.producers[own] | rule.waits[own] <= ends.keys():  # it could have run
                    assert max(clock[task], rule.arrival(own, ends)) >= start
        elif others:
            assert rule.producers[others[0]] <= ends.keys(), "it waits for nothing but a message"
            assert start < rule.arrival(others[0], ends)
        clock[task] = ends[op] = start + 1


@settings(max_examples=100)
@given(steps())
def test_own_work_goes_on_with_what_was_just_made_the_longest_way_to_the_end_first(step: Step) -> None:
    rule, done = Rule(step, alone=True), set[Operation]()
    # What became ready last comes first; of what became ready together the longer way, then what was made first.
    batches = [[op for op in rule.needed if not rule.producers[op]]]
    for op in rule.order:
        batch = [b for b in batches if b][-1]
        assert op == min(batch, key=lambda o: (-rule.way[o], o.index))
        batch.remove(op)
        done.add(op)
        first = {c: rule.producers[c] | rule.waits[c] for c in rule.needed}
        batches.append([c for c in rule.needed if op in first[c] and first[c] <= done])


@settings(max_examples=150)
@given(steps())
def test_a_variable_is_looked_at_before_own_work_changes_it(step: Step) -> None:
    for alone in (False, True):
        rule = Rule(step, alone)
        position = {op: i for i, op in enumerate(rule.order)}
        for change, looks in rule.waits.items():
            assert all(position[look] < position[change] for look in looks)


def names(*fetches: Tensor | Operation) -> list[str]:
    """The order of a step with these fetches, all on one task."""
    needed = prune(fetches)
    return [op.name for op in schedule(needed, dict.fromkeys(needed, HERE))]


def test_a_counter_is_read_before_a_step_of_training_counts() -> None:
    """The reader was made last and leads nowhere; the change waits for all of the training."""
    step = tf.train.create_global_step()
    loss = tf.square(tf.Variable(1.0, name="w") - 3.0)
    train = tf.train.AdamOptimizer(0.1).minimize(loss, global_step=step)
    order = names(train, step.read_value())
    assert order.index("read") < order.index("Adam")


def test_what_was_read_of_a_variable_is_computed_with_before_it_changes() -> None:
    """Else it would have to be copied. By the longer way to the end the change would go first."""
    v = tf.Variable(tf.ones([4]), name="v")
    with tf.control_dependencies([tf.assign_sub(v, 0.01 * v, name="decay")]):
        end = tf.negative(tf.negative(tf.negative(tf.constant(1.0))))
    order = names(end, tf.negative(v, name="use"), tf.negative(tf.reshape(v, [2, 2]), name="use_of_view"))
    assert max(order.index("use"), order.index("use_of_view")) < order.index("decay")


def test_what_is_read_behind_a_change_because_a_dependency_says_so_stays_there() -> None:
    v = tf.Variable(1.0, name="v")
    change = tf.assign_add(v, 1.0, name="change")
    with tf.control_dependencies([change]):
        after = v.read_value()
    again = tf.assign_add(v, tf.negative(tf.constant(1.0)), name="again")
    before = tf.identity(v._as_graph_element(), name="before")
    order = names(again, after, before, change)
    assert order.index("before") < order.index("change") < order.index(after.op.name)
    assert order.index("before") < order.index("again")


def test_each_of_two_changes_waits_for_those_who_look_between_them() -> None:
    """The second waits for who looks behind the first one and, beside that, with what was read."""
    v = tf.Variable(1.0, name="v")
    first = tf.assign_add(v, 1.0, name="first")
    with tf.control_dependencies([first]):
        read = v.read_value()
    with tf.control_dependencies([read]):
        second = tf.assign_add(v, 1.0, name="second")
    use = tf.negative(tf.reshape(read, [1]), name="use")
    also = tf.negative(v, name="also")
    order = names(second, use, also)
    assert order.index("also") < order.index("first") < order.index("use") < order.index("second")


def test_a_change_waits_for_who_looks_before_a_change_that_it_does_not_wait_for() -> None:
    """The last change needn't wait for the first one, only for who looks before either."""
    v, w = tf.Variable(1.0, name="v"), tf.Variable(1.0, name="w")
    with tf.control_dependencies([tf.assign_add(w, 1.0)]):
        middle = tf.identity(v._as_graph_element(), name="middle")
        last = tf.assign_add(v, tf.negative(w), name="last")
    with tf.control_dependencies([last]):
        end = tf.negative(tf.negative(tf.constant(1.0)))
    first = tf.assign_add(v, 1.0, name="first")
    look = tf.identity(v._as_graph_element(), name="look")
    order = names(first, middle, look, end)
    assert order.index("look") < order.index("last") and order.index("middle") < order.index("last")
    assert order.index("look") < order.index("first")


def test_handles_of_variables_are_looked_at_before_they_change() -> None:
    handle = apply_op("VarHandleOp", dtype=tf.float32, shape=(), shared_name="v", name="v")
    add = apply_op("AssignAddVariableOp", handle, tf.constant(1.0), name="add")
    with tf.control_dependencies([add]):
        end = tf.negative(tf.negative(tf.negative(tf.constant(1.0))))
    read = apply_op("ReadVariableOp", handle, dtype=tf.float32, name="read")
    order = names(end, tf.negative(tf.reshape(read, [1]), name="use"))
    assert order.index("use") < order.index("add")


def test_two_changes_that_look_at_each_others_variable_wait_for_none() -> None:
    """A cycle: each would have to come first."""
    a, b = tf.Variable(1.0, name="a"), tf.Variable(2.0, name="b")
    swap = [tf.assign_add(a, b._as_graph_element(), name="first"), tf.assign_add(b, a._as_graph_element(), name="second")]
    order = names(*swap)
    assert order.index("first") < order.index("second")


def test_a_change_waits_for_who_looks_from_another_task_though_its_own_has_nothing_else_to_do() -> None:
    v = tf.Variable(1.0, name="v")
    change = tf.assign_add(v, 1.0, name="change")
    far: Tensor = tf.constant(1.0)
    for _ in range(10):
        far = tf.negative(far)
    with tf.control_dependencies([far]):
        look = tf.identity(v._as_graph_element(), name="look")
    needed = prune([change, look])
    there = {op: THERE for op in needed if op.name == "look" or op.type == "Neg"}
    order = schedule(needed, dict.fromkeys(needed, HERE) | there)
    assert order.index(look.op) < order.index(change.op)


def test_many_that_look_at_a_variable_and_many_that_change_it_make_no_product_of_edges() -> None:
    def nbytes(count: int) -> int:
        with Graph().as_default():
            v = tf.Variable(0.0)
            looks = [tf.identity(v._as_graph_element()).op for _ in range(count)]
            changes = [tf.assign_add(v, 1.0).op for _ in range(count)]
            needed = prune([*looks, *changes])
        placement = dict.fromkeys(needed, HERE)
        tracemalloc.start()
        order = schedule(needed, placement)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        place = {op: i for i, op in enumerate(order)}
        assert max(map(place.__getitem__, looks)) < min(map(place.__getitem__, changes))
        return peak

    assert nbytes(2000) < 6 * nbytes(500)


def test_a_row_for_another_task_comes_before_the_next_row_even_if_that_leads_to_the_longest_chain() -> None:
    """Task-Bench-style tree: the first point goes on for 20 rows; in each row it feeds another one, and that the other task."""
    first = tf.constant([0.0])
    placement: dict[Operation, DeviceName] = {first.op: HERE}
    for row in range(20):
        second = tf.negative(first, name=f"for_others{row}")
        read = tf.negative(second, name=f"there{row}")
        first = tf.negative(first, name=f"chain{row}")
        placement |= {second.op: HERE, read.op: THERE, first.op: HERE}
    here = [op.name for op in schedule(tf.get_default_graph().get_operations(), placement) if placement[op] == HERE]
    made = [here.index(f"for_others{row}") for row in range(20)]
    assert all(here.index(f"chain{row + 1}") > at for row, at in enumerate(made[:-1]))
    assert here.index("chain19") == len(here) - 1


def test_what_another_task_computes_with_comes_before_own_work_of_which_it_is_only_told_the_end() -> None:
    """A worker that is also a server: first the gradient for the other server, then the update here, although that ends sooner."""
    came = tf.constant(1.0, name="came")
    update = tf.negative(came, name="update")
    gradient = tf.negative(tf.negative(came, name="error"), name="gradient")
    there = tf.negative(gradient, name="there")
    with tf.control_dependencies([update, there]):
        end = tf.no_op(name="end")
    operations = tf.get_default_graph().get_operations()
    placement = dict.fromkeys(operations, HERE) | {there.op: THERE, end: THERE}
    assert [op.name for op in schedule(operations, placement)][:4] == ["came", "error", "gradient", "update"]
    with tf.control_dependencies([update]):
        reader = tf.negative(tf.constant(1.0, name="mine"), name="reader")
    more = tf.negative(reader, name="more")
    placement |= dict.fromkeys((reader.op, more.op, reader.op.inputs[0].op), THERE)
    order = [op.name for op in schedule(tf.get_default_graph().get_operations(), placement)]
    assert order.index("update") < order.index("error"), "somebody reads what waits for it"


def live(order: Sequence[Operation], device: DeviceName, placement: dict[Operation, DeviceName]) -> int:
    """The most results of a task that somebody still needs at one time."""
    place = {op: i for i, op in enumerate(order)}
    ends = {op: max([place[c] for c in order if op in [t.op for t in c.inputs]], default=place[op]) for op in order}
    own = [op for op in order if placement[op] == device]
    return max(sum(place[op] <= at <= ends[op] for op in own) for at in range(len(order)))


def test_of_many_chains_that_no_other_task_waits_for_one_is_alive_at_a_time() -> None:
    chains: list[Tensor] = [tf.constant(float(i)) for i in range(30)]
    for _ in range(10):  # made breadth first
        chains = [tf.negative(x) for x in chains]
    operations = tf.get_default_graph().get_operations()
    placement = dict.fromkeys(operations, HERE)
    assert live(schedule(operations, placement), HERE, placement) == 2
    with tf.control_dependencies([x.op for x in chains]):
        end = tf.no_op()
    operations = tf.get_default_graph().get_operations()
    placement = dict.fromkeys(operations, HERE) | {end: THERE}
    assert live(schedule(operations, placement), HERE, placement) == 2


def test_what_another_task_needs_one_after_the_other_is_made_one_after_the_other() -> None:
    """A sequence: 60 inputs, each made by 5 operations here, for a chain there. A chain of inputs and one message ahead is enough."""
    state = tf.constant(0.0)
    placement: dict[Operation, DeviceName] = {state.op: THERE}
    for i in range(60):
        x = tf.constant(float(i))
        placement[x.op] = HERE
        for _ in range(5):
            x = tf.negative(x)
            placement[x.op] = HERE
        state = tf.add(state, x)
        placement[state.op] = THERE
    operations = tf.get_default_graph().get_operations()
    assert live(schedule(operations, placement), HERE, placement) <= 5 + MESSAGE + 2 + PATIENCE / 6


def test_a_producer_for_another_task_runs_before_local_work_that_nobody_waits_for() -> None:
    local: Tensor = tf.constant(1.0, name="local")
    for i in range(5):
        local = tf.negative(local, name=f"local{i}")
    sent = tf.constant(2.0, name="sent")
    received = tf.negative(sent, name="received")
    operations = tf.get_default_graph().get_operations()
    placement = dict.fromkeys(operations, HERE) | {received.op: THERE}
    assert [op.name for op in schedule(operations, placement)][0] == "sent"


@pytest.mark.parametrize("length", [PATIENCE // 2, 4 * PATIENCE])
def test_a_task_s_own_work_gives_way_for_a_while_to_what_others_do_for_others(length: int) -> None:
    """A variable's update waits for the gradient of the last layer, its worker goes on to the first: both may be on one rank."""
    x: Tensor = tf.constant(1.0)
    updates = {tf.negative(x, name="update").op}
    chain = [x.op]
    for _ in range(length):
        x = tf.negative(x)
        chain.append(x.op)
    received = tf.negative(x, name="received").op
    operations = tf.get_default_graph().get_operations()
    placement = dict.fromkeys(operations, HERE) | {received: THERE} | dict.fromkeys(updates, DeviceName(Task("ps", 0), "CPU", 0))
    order = schedule(operations, placement)
    (before,) = [order.index(op) for op in updates]
    assert before > length if length < PATIENCE else PATIENCE < before <= PATIENCE + MESSAGE + 1


def test_equals_keep_the_order_in_which_they_were_made() -> None:
    made = [tf.constant(float(i)).op for i in range(20)]
    assert schedule(made, dict.fromkeys(made, HERE)) == made
    read = [tf.negative(op.outputs[0]).op for op in made]
    placement = dict.fromkeys(made, HERE) | dict.fromkeys(read, THERE)
    assert [op for op in schedule(made + read, placement) if op in made] == made


def test_a_fed_tensor_is_no_reason_to_wait() -> None:
    x = tf.negative(tf.constant(1.0), name="x")
    y = tf.negative(x, name="y")
    z = tf.negative(y, name="z")
    needed = [op for op in tf.get_default_graph().get_operations()]
    assert [op.name for op in schedule(needed, dict.fromkeys(needed, HERE), {y})] == ["Const", "x", "y", "z"]
    assert [op.name for op in schedule([z.op], {z.op: HERE}, {y})] == ["z"]
