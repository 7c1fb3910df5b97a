/* A lane: jobs that run one after another, in order, and never two at once.
 *
 * For: whatever must not be used by two threads at the same time, or not in another
 * order than it was asked to: a database connection, a session, a device.  A lane
 * has no thread of its own.  Its jobs run on any worker, or, if it is pinned, always
 * on the same one.  There may be thousands of them.
 *
 *   submit: push onto the lane's inbox; is the lane's turn queued already?
 *           no: queue it, like a job                      (scheduled: 0 -> 1)
 *   turn:   a worker runs jobs of the inbox, a few or for a little while; then, if
 *           there are more, the turn goes to the end of the queue again
 *           the inbox is dry: scheduled: 1 -> 0, and one more look
 *
 * Why it is right: there is one turn, and it is in one place at a time, so what it
 * does, taking and running the lane's jobs, is done by one thread at a time, in the
 * order of the inbox.  A job that was pushed while `scheduled` was 1 is seen by the
 * look after it became 0, since both are seq_cst read-modify-writes (the push and the
 * exchange); who sees 0 queues the turn.
 *
 * Fair: a turn is bounded in jobs and in time, and the queue is first in, first out,
 * so of n lanes with work each one gets every n-th turn.
 *
 * What the jobs of a lane bring goes home in their order, too.  A turn's last results are
 * posted by its worker when it has let go (rt_worker.h); if the next turn is another
 * worker's, that one waits for the moment until they are.
 *
 * A pinned lane's turn waits in its worker's own inbox.  It is run as soon as that
 * worker is free, even if others are idle. */
#ifndef RT_LANE_H
#define RT_LANE_H

#include "rt_pool.h"

#define RT_LANE_JOBS 16           /* jobs of one turn */
#define RT_LANE_NS (200 * 1000ull) /* and their time: none is begun after it */

struct rt_lane {
    struct rt_job turn;
    struct rt_pool *pool;
    struct rt_stack inbox;      /* submitted; chains of one or more */
    struct rt_node *chains;     /* taken, not opened yet; the turn's own */
    struct rt_job *next;        /* of an opened chain, not run yet; the turn's own */
    struct rt_worker *last;     /* has results of the last turn; or NULL; the turn's own */
    uint64_t last_posts;        /* its count of posts before it posts them */
    _Atomic uint32_t scheduled; /* 1: the turn is queued or running */
    _Atomic uint32_t refs;      /* the owner, and the turn that is queued or running */
    _Atomic uint32_t worker;    /* of a pinned lane: its index and 1; 0 at first */
    bool pinned;
};

/* Make a lane of pool, which it keeps.  0 or RT_ENOMEM. */
int rt_lane_new(struct rt_pool *pool, bool pinned, struct rt_lane **out);

/* Queue a job at the lane's end: 0, RT_EFULL or RT_ECLOSED, as rt_pool_submit().
 * Thread: any.  GIL: may be held.  Blocks: no. */
int rt_lane_submit(struct rt_lane *lane, struct rt_job *job);

/* Queue all jobs of a list, in order and next to each other; the list is empty
 * afterwards.  All or none.  Thread: any.  Blocks: no. */
int rt_lane_submit_all(struct rt_lane *lane, struct rt_joblist *jobs);

/* The owner lets go.  What was submitted is run all the same.
 * Thread: any.  Blocks: no. */
void rt_lane_release(struct rt_lane *lane);

#endif
