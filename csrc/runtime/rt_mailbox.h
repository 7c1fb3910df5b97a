/* A mailbox: where finished jobs wait for the thread that owns them.
 *
 * One mailbox belongs to one event loop and one pool.  Workers post; the owner
 * is told through an eventfd, which it has in its selector.  One write of the
 * eventfd serves any number of posts: the armed flag says that the owner has
 * been told and has not looked yet.
 *
 *   worker                         owner
 *   ------                         -----
 *   1 push onto `done`             1 read the eventfd            (begin)
 *   2 armed: exchange to 1         2 take and handle jobs        (next)
 *   3 if it was 0: write           3 armed: exchange to 0        (next, when dry)
 *                                  4 take and handle once more   (next)
 *
 * Why it is right: a post whose exchange (2) saw 1 did its push before the
 * owner's clear (3), since both are read-modify-writes of one word, so the
 * owner's last take (4) sees it.  A post that comes after the clear sees 0 and
 * writes.  Taking before the clear only saves system calls; it is the take
 * after the clear that must not be left out or moved up.
 *
 * The mailbox lives until its owner has released it and no worker is inside
 * rt_mailbox_post() any more, whichever comes last; only then is the eventfd
 * closed. */
#ifndef RT_MAILBOX_H
#define RT_MAILBOX_H

#include "rt_job.h"

struct rt_mailbox {
    struct rt_stack done;     /* batches of finished jobs; a batch is a chain */
    _Atomic uint32_t armed;
    _Atomic uint32_t refs;
    int fd;
    _Atomic uint64_t posts;   /* batches posted */
    _Atomic uint64_t rings;   /* eventfd writes */

    /* Owner's side, no other thread looks. */
    struct rt_job *ready;     /* taken, not handed out yet */
    struct rt_node *batches;  /* taken, not opened yet */
    bool cleared;
};

/* Make a mailbox.  0, RT_ENOMEM or RT_ESYS (no descriptors). */
int rt_mailbox_new(struct rt_mailbox **out);

/* The owner is done with mb; every job it submitted has come home.
 * Thread: owner.  Blocks: no. */
void rt_mailbox_release(struct rt_mailbox *mb);

/* Post a list of finished jobs, in order; the list is empty afterwards.
 * Thread: worker.  GIL: not held.  Blocks: no.
 * Ownership: takes the jobs; the caller must not touch them again. */
void rt_mailbox_post(struct rt_mailbox *mb, struct rt_joblist *jobs);

/* Start looking, after the eventfd was found readable (or at any time).
 * Thread: owner.  Blocks: no. */
void rt_mailbox_begin(struct rt_mailbox *mb);

/* The next finished job, oldest first; NULL when there is none, and then the
 * next post rings again.
 * Thread: owner.  Blocks: no.  Ownership: the caller has the job. */
struct rt_job *rt_mailbox_next(struct rt_mailbox *mb);

/* Stop before rt_mailbox_next() said NULL: have the eventfd readable, so that
 * the owner is called again.
 * Thread: owner.  Blocks: no. */
void rt_mailbox_again(struct rt_mailbox *mb);

#endif
