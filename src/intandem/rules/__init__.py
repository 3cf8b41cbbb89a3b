from intandem.rules.barrier import early_backward
from intandem.rules.memory_rules import check_memory
from intandem.rules.message_rules import check_links
from intandem.rules.program_rules import check_program
from intandem.rules.schedule_rules import check_schedule, obeys_all_but_order
from intandem.rules.verification import check, verify

__all__ = [
    "check",
    "check_links",
    "check_memory",
    "check_program",
    "check_schedule",
    "early_backward",
    "obeys_all_but_order",
    "verify",
]
