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
 * It is a habit only where it pays.  A reply that came in half of the time, the wait for
 * the GIL included, is worth a point; a later one costs one, none at all two.  Below zero
 * it is tried again only after 1, 2, 4 ... 1,024 drains that sent something: a server
 * further away costs one try in a thousand.  It needs a second CPU, and a loop of
 * asyncio's own, which shows what else it has to do.
 *
 * Thread: the loop's.  GIL: held. */
#ifndef OFFLOOP_BUSY_POLL_H
#define OFFLOOP_BUSY_POLL_H

#include "core.h"

struct core_busy_poll {
    PyObject *ready;      /* owned: the loop's deque of what is to run; NULL: never */
    int selector;         /* the loop's epoll */
    uint64_t limit;       /* ns */
    uint64_t turn;        /* when the loop called the drain */
    int score;
    unsigned skip, pause; /* drains to leave out: of this pause, and its length */
    bool sent;            /* a command was sent since the last look */
    uint64_t tries, hits;
};

/* Prepare for loop; limit: ns, 0 for never.  Nothing fails: a loop that cannot be looked
 * at is not polled for. */
void core_busy_poll_init(struct core_busy_poll *bp, PyObject *loop, uint64_t limit);

/* The loop has called the drain. */
void core_busy_poll_begin(struct core_busy_poll *bp);

/* A drain is over: whether there is something in the mailbox (descriptor fd) by now. */
bool core_busy_poll(struct core_busy_poll *bp, int fd);

#endif
