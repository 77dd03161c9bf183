"""Agreements between the supervisor, its ranks, and the program that started it.

This module imports nothing: a rank needs it before torch is loaded.
"""

EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped on request, checkpointed; the same command goes on
EXIT_INTERRUPTED = 130  # 128 + SIGINT: a second Ctrl-C, which waited for nothing

# Environment variables.
RESTARTS = "VSE_SCALE_RESTARTS"  # the number of restarts so far
SUPERVISOR = "VSE_SCALE_SUPERVISOR"  # process id of a launcher's parent, with which it dies
LAUNCHER = "VSE_SCALE_LAUNCHER"  # process id of a rank's parent, with which it dies
FAILURES = "VSE_SCALE_FAILURES"  # the folder where ranks note what ends them, and that they live

# A rank that finds a user's mistake waits so long for the main rank to report it: mostly every rank
# finds the same one, and the launcher ends all ranks when one leaves.
MESSAGE_SECONDS = 10.0
# Ranks may outlive the first that ended by so long. More than MESSAGE_SECONDS; less than the 30
# seconds after which DeepSpeed's launcher would end them.
GRACE_SECONDS = 15.0
