from intandem.schedules.gpipe import gpipe
from intandem.schedules.naive import naive
from intandem.schedules.one_f_one_b import one_f_one_b
from intandem.schedules.registry import build_schedule, schedule_names

__all__ = ["build_schedule", "gpipe", "naive", "one_f_one_b", "schedule_names"]
