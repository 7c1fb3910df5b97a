/* A mailbox: where finished jobs wait for the thread that owns them.
 *
 * One mailbox belongs to one event loop and one pool.  Workers post; the owner
 * is told through `fd`, which it has in its selector.  That is an epoll of the
 * mailbox's own, with an eventfd in it: the bell.  One write of the bell serves
 * any number of posts: the armed flag says that the owner has been told and has
 * not looked yet.
 *
 *   worker                         owner
 *   ------                         -----
 *   1 push onto `done`             1 read the bell               (begin)
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
 * Lending.  A source whose traffic is small and all the owner's can be lent to the
 * mailbox: its descriptor moves from the poller's epoll into the mailbox's, and
 * the owner reads it itself when it looks, which saves waking a worker, and being
 * woken by one, for each reply.  Whoever holds the source takes it back when that
 * is no longer right.  An owner that has just seen the descriptor ready may be on
 * its way to the source meanwhile; so a loan keeps the source alive, and it is the
 * owner that ends it, when it looks the next time, or the end of the mailbox.
 *
 * The alarm.  The owner may have `fd` become readable at a time of its choice, by a
 * timerfd in the same epoll: what it waits for has deadlines, and they are to be
 * kept without a timer of the loop's for each.  The nearest time counts; setting one
 * that is later than what is set already costs nothing.
 *
 * The mailbox lives until its owner has released it, no worker is inside
 * rt_mailbox_post() any more and nothing is lent to it, whichever comes last; only
 * then are its descriptors closed. */
#ifndef RT_MAILBOX_H
#define RT_MAILBOX_H

#include "rt_job.h"

struct rt_source;

struct rt_mailbox {
    struct rt_stack done;     /* batches of finished jobs; a batch is a chain */
    struct rt_stack returned; /* loans taken back, to be ended by the owner */
    _Atomic uint32_t armed;
    _Atomic uint32_t refs;
    _Atomic uint32_t lent;    /* loans in the epoll */
    int fd, bellfd;
    int timerfd;              /* of the alarm; -1 until it is used */
    _Atomic uint64_t posts;   /* batches posted */
    _Atomic uint64_t rings;   /* writes of the bell */

    /* Owner's side, no other thread looks. */
    struct rt_job *ready;     /* taken, not handed out yet */
    struct rt_node *batches;  /* taken, not opened yet */
    bool cleared;
    uint64_t alarm;           /* when timerfd goes off; RT_NEVER: it does not */
};

/* A source lent to a mailbox; on the heap, freed by the mailbox. */
struct rt_loan {
    struct rt_node node; /* in mailbox->returned */
    struct rt_mailbox *mailbox;
    struct rt_source *source;
    int fd;
    /* The descriptor is ready (enum rt_what); edge-triggered, as in the poller, so what
     * is left unread is to be remembered.  Called by the mailbox's owner from
     * rt_mailbox_begin(), also once after the loan was taken back.  Jobs posted
     * to the mailbox meanwhile do not ring. */
    void (*ready)(struct rt_source *src, uint32_t what);
    /* Let go of what keeps the source alive.  Called once, by any thread. */
    void (*drop)(struct rt_source *src);
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

/* Start looking, after `fd` was found readable (or at any time).  Has the sources
 * looked at that are lent and ready.
 * Thread: owner.  Blocks: no. */
void rt_mailbox_begin(struct rt_mailbox *mb);

/* The next finished job, oldest first; NULL when there is none, and then the
 * next post rings again.
 * Thread: owner.  Blocks: no.  Ownership: the caller has the job. */
struct rt_job *rt_mailbox_next(struct rt_mailbox *mb);

/* Stop before rt_mailbox_next() said NULL: have `fd` readable, so that the owner is
 * called again.
 * Thread: owner.  Blocks: no. */
void rt_mailbox_again(struct rt_mailbox *mb);

/* Have `fd` readable once `when` has passed, if not before.  0 or RT_ESYS (no
 * descriptors).
 * Thread: owner.  Blocks: no. */
int rt_mailbox_alarm(struct rt_mailbox *mb, uint64_t when);

/* Whether the alarm has gone off; it is off afterwards, and to be set again.
 * Thread: owner.  Blocks: no. */
bool rt_mailbox_alarmed(struct rt_mailbox *mb);

/* Lend loan->source to loan->mailbox, filled in by the caller.  0: the mailbox has
 * the loan and watches its descriptor for reading; or RT_ESYS, and nothing is done.
 * Thread: who holds the source, while a job for that mailbox is under way (so that
 * the mailbox is there).  Blocks: no. */
int rt_mailbox_lend(struct rt_loan *loan);

/* Stop watching the loan's descriptor; the loan is the mailbox's from here on.
 * Thread: who holds the source.  Blocks: no. */
void rt_mailbox_take_back(struct rt_loan *loan);

#endif
