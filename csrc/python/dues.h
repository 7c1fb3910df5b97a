/* The deadlines of one loop's calls.
 *
 * For: `timeout=`.  A command's deadline is kept by the worker that sends it; a call's
 * cannot be, as its worker is inside the call.  So the loop's own thread keeps them, in
 * a heap, and is told by the mailbox's alarm when the nearest has passed.
 *
 * Correct: a stalled loop causes no false timeout, for a call that has ended is never
 * timed out, even if the loop has not looked at it yet: the state of the job decides.  A call costs nothing for a timer but its place in the heap; the
 * alarm is set anew once for each time that it goes off.
 *
 * Thread: the loop's.  GIL: held. */
#ifndef OFFLOOP_DUES_H
#define OFFLOOP_DUES_H

#include "core.h"

struct core_bridge;
struct core_job;
struct core_wake_ctx;

struct core_dues {
    struct core_job **heap; /* from 1 */
    uint32_t count, room;
};

/* Keep job's deadline.  0, or -1 with an exception set. */
int core_dues_add(struct core_bridge *bridge, struct core_job *job);

/* Forget a job that is in. */
void core_dues_remove(struct core_bridge *bridge, struct core_job *job);

/* End what is overdue, if the alarm has gone off.  0, or -1 as
 * core_future_settle_exception(). */
int core_dues_expire(struct core_wake_ctx *w, struct core_bridge *bridge);

void core_dues_fini(struct core_dues *dues);

#endif
