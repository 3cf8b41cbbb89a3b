"""A second simulator, for programs and whole seconds: it looks at every rank at every second.

Slow, and written without the first one's ideas: no messages with a time of arrival, but wires with
queues; no order of events, but a clock that ticks.
"""

STAYS = object()
"""Something was done, and the rank is still at the same instruction."""


class Wire:
    def __init__(self):
        self.queue = []
        self.free_at = 0

    def pump(self, now):
        """Let the first in the queue leave if the wire is free; True if it did."""
        if not self.queue or self.free_at > now:
            return False
        message = self.queue.pop(0)
        message["leaves"], message["left"] = now, now + message["bytes_s"]
        self.free_at = message["left"]
        return True


class Ticks:
    """``spans``: (action, start, end) of each rank; ``ends``: when each rank's row ends."""

    def __init__(self, program, costs, machine):
        self.program, self.costs, self.machine = program, costs, machine
        self.wires, self.messages, self.here = {}, {}, {}
        self.spans = [[] for _ in program.instructions]
        self.ends = [0] * program.num_ranks
        self.next = [0] * program.num_ranks
        self.busy_until = [0] * program.num_ranks
        self.stage = [0] * program.num_ranks
        self.first = [None] * program.num_ranks
        self.again_since = [None] * program.num_ranks
        self.run()

    def run(self):
        now, idle = 0, 0
        while any(
            n < len(row) for n, row in zip(self.next, self.program.instructions, strict=True)
        ):
            while self.something(now):
                idle = 0
            now, idle = now + 1, idle + 1
            assert idle < 10_000, "nothing happens any more"

    def something(self, now):
        """Do one thing that can be done now: wires first, then the lowest rank."""
        if any(wire.pump(now) for wire in self.wires.values()):
            return True
        return any(
            self.busy_until[rank] <= now and self.next[rank] < len(row) and self.do(rank, now)
            for rank, row in enumerate(self.program.instructions)
        )

    def do(self, rank, now):
        """Begin the next instruction of ``rank`` or go on with it; True if anything changed."""
        instruction = self.program.instructions[rank][self.next[rank]]
        took = getattr(self, type(instruction).__name__.lower())(rank, instruction, now)
        if took is None:
            return False
        if took is not STAYS:
            self.next[rank] += 1
            self.busy_until[rank] = self.ends[rank] = now + took
        return True

    def compute(self, rank, instruction, now):
        action = instruction.action
        if instruction.overlaps:
            self.first[rank] = action
            return 0
        began = now if self.again_since[rank] is None else self.again_since[rank]
        seconds = self.costs.seconds(action)
        if (first := self.first[rank]) is not None:
            seconds = self.costs.pair_s(first, action)
            self.spans[rank].append((first, now, now + seconds))
        self.spans[rank].append((action, began, now + seconds))
        self.first[rank] = self.again_since[rank] = None
        return seconds

    def recompute(self, rank, instruction, now):
        self.again_since[rank] = now
        return self.costs.seconds(instruction.action)

    def link(self, sender, receiver):
        return self.machine.links.get((sender, receiver), self.machine.link)

    def send(self, rank, instruction, now):
        message = self.messages.get(instruction.message)
        if message is not None:
            return message["left"] - now if "left" in message else None
        pair = (rank, instruction.peer)
        source, target = instruction.message.source.stage, instruction.message.target_stage
        seconds = self.costs.message_bytes(source, target) / self.link(*pair).bandwidth_bytes_per_s
        message = {"bytes_s": seconds, "latency": self.link(*pair).latency_s}
        self.messages[instruction.message] = message
        group = next((w for w in self.machine.shared_wires if pair in w), pair)
        self.wires.setdefault(group, Wire()).queue.append(message)
        return 0 if self.machine.transfers_overlap else STAYS

    def recv(self, rank, instruction, now):
        message = self.messages.get(instruction.message, {})
        if "leaves" not in message:
            return None
        overlap = self.machine.transfers_overlap
        there = message["left" if overlap else "leaves"] + message["latency"]
        if there > now:
            return None
        self.again_since[rank] = None
        return 0 if overlap else message["bytes_s"]

    def reducegrads(self, rank, instruction, now):
        """One stage after another; stands still until all holders stand there."""
        stages = self.program.placement.stages_of(rank)
        done = self.stage[rank]
        if done == len(stages):
            return 0
        stage = stages[done]
        holders = self.program.placement.holders_of(stage)
        self.here.setdefault(stage, {}).setdefault(rank, now)
        if len(self.here[stage]) < len(holders):
            return None
        self.stage[rank] += 1
        self.busy_until[rank] = self.ends[rank] = now + self.costs.reduction_s[stage]
        return STAYS
