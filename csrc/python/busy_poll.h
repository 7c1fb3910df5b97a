/* Busy polling: looking for the next reply for a moment before the loop sleeps.
 *
 * For: programs with few commands under way.  A server on the same machine, or near it,
 * answers in less time than it takes a thread to fall asleep and to be woken, above all
 * on a virtual machine; so the sleep doubles or trebles what a command takes, and costs
 * as much of the CPU as looking for the reply does.
 *
 * When a drain is over, and commands were sent in it, and the loop has nothing else to
 * do, the loop's thread looks at the mailbox and at the loop's selector, without the GIL,
 * until one of them has something or the pool's busy_poll is over.  What came into the
 * mailbox is drained at once; for anything else, and after TURN_NS, the loop goes on.
 *
 * It is a habit only where it pays (rt_habit.h): where replies come in half of the time,
 * the wait for the GIL included.  It needs a second CPU, and a loop of asyncio's own, which
 * shows what else it has to do.
 *
 * With calls out it is half of the way: the worker that has run one looks for the next
 * while the loop looks for the result, so that neither sleeps (rt_worker.h).  The worker
 * finds the GIL free, as it waits for that (core_host_meet()).
 *
 * Thread: the loop's.  GIL: held. */
#ifndef OFFLOOP_BUSY_POLL_H
#define OFFLOOP_BUSY_POLL_H

#include "../runtime/rt_habit.h"
#include "core.h"

enum core_place {
    CORE_ELSEWHERE = 0,
    CORE_LOOKS,             /* or is about to, and lets go of the GIL just now */
    CORE_LOOKS_WITHOUT_GIL,
};

struct core_busy_poll {
    PyObject *ready;      /* owned: the loop's deque of what is to run; NULL: never */
    int selector;         /* the loop's epoll */
    uint64_t limit;       /* ns */
    uint64_t turn;        /* when the loop called the drain */
    struct rt_habit habit;
    bool sent;            /* a command was sent since the last look */
    _Atomic uint32_t place; /* an enum core_place: where the loop's thread is */
    uint64_t tries, hits;
};

/* Prepare for loop; limit: ns, 0 for never.  Nothing fails: a loop that cannot be looked
 * at is not polled for. */
void core_busy_poll_init(struct core_busy_poll *bp, PyObject *loop, uint64_t limit);

/* The loop has called the drain. */
void core_busy_poll_begin(struct core_busy_poll *bp);

/* A drain is over: whether there is something in the mailbox (descriptor fd) by now.
 * calls: the loop waits for calls, too. */
bool core_busy_poll(struct core_busy_poll *bp, int fd, bool calls);

/* Where the loop's thread was a moment ago: a hint.  Thread: any.  GIL: any. */
static inline enum core_place core_busy_poll_place(const struct core_busy_poll *bp)
{
    return (enum core_place)atomic_load_explicit(&bp->place, memory_order_relaxed);
}

#endif
