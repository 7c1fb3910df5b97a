/* A pool: a fixed number of workers, their queue of jobs and their poller.
 *
 * One thread more is made where every worker is inside a job, which may take long, when
 * a connection is added: the reserve.  It leads and runs no jobs, so that connections
 * are attended to.
 *
 * The number of workers is set when the pool is made; the threads start at the
 * first use.  A pool is an object: there is no process-wide state, but for one
 * number that counts forks.
 *
 * Submitting never blocks, spins or waits for another thread, so it can be done
 * with the GIL held.  One submit wakes at most one worker, and none while one
 * that was woken has not looked yet: a worker that takes a job and sees more
 * wakes the next.
 *
 *   submit: push onto a stack --+        worker: pop from the ring, and when it
 *                               |        is dry, refill it: one worker at a time
 *                               +------> takes the whole stack and pushes it
 *                                        into the ring, oldest first
 *
 * Closing: no new jobs; what is queued or under way is finished until a
 * deadline; the rest fails with RT_ECLOSED; workers end.  A pool that its owner
 * merely releases closes itself without anybody waiting.
 *
 * After a fork the child has no workers.  rt_pool_forked() tells; the child
 * makes a new pool and leaves the old one as it is: it belongs to the parent. */
#ifndef RT_POOL_H
#define RT_POOL_H

#include "rt_job.h"
#include "rt_mailbox.h"
#include "rt_poller.h"
#include "rt_worker.h"

#define RT_MAX_WORKERS 1024
#define RT_IDLE_WORDS (RT_MAX_WORKERS / 64)

enum rt_pool_state {
    RT_POOL_NEW = 0, /* no threads yet */
    RT_POOL_RUNNING,
    RT_POOL_DRAINING, /* closing: finishing what there is */
    RT_POOL_STOPPED,  /* nothing is left; the workers end or have ended */
};

struct rt_pool {
    struct rt_worker *workers;
    unsigned worker_count; /* as configured */
    _Atomic uint32_t started; /* threads made */
    uint32_t queue_limit;  /* jobs that may be queued */
    size_t stack_size;     /* of each thread, in bytes */
    const struct rt_host *host; /* of hosted jobs, or NULL */
    uint64_t busy_poll;    /* ns that a worker looks for a hosted job before it sleeps */
    uint64_t fork_count;   /* forks seen when it was made */

    _Atomic uint32_t state;
    _Atomic uint32_t refs; /* the owner, the workers together, each channel */
    _Atomic uint32_t live; /* worker threads */
    _Atomic uint64_t stop_at;

    struct rt_stack submitted;
    struct rt_ring *ring;
    struct rt_job *leftover; /* taken from the stack, no room in the ring */
    _Atomic uint32_t refilling;
    _Atomic uint32_t depth;  /* queued jobs */
    _Atomic uint32_t room_sought; /* 1: somebody is in `seekers`, or was */
    struct rt_stack seekers; /* jobs that go home when there is room (rt_room.c) */
    _Atomic uint32_t busy;   /* jobs being run */
    _Atomic uint64_t loop_commands; /* replies matched by mailboxes' owners */
    _Atomic uint32_t coming; /* 1: a worker was woken and has not looked yet */
    _Atomic uint32_t lead;   /* who leads: the worker's index and 1, or 0 */
    _Atomic uint32_t reserve; /* 1: there is a reserve, workers[worker_count] */
    _Atomic uint32_t leader_waits; /* for somebody to lead instead: it has turns to run */
    _Atomic uint64_t idle[RT_IDLE_WORDS];

    _Atomic uint64_t submits;
    _Atomic uint64_t wakes; /* workers woken */
    _Atomic uint64_t depth_high;

    struct rt_job *close_job; /* posted when the last worker has ended */
    struct rt_poller poller;
};

/* Make a pool of `workers` (1 to RT_MAX_WORKERS) with room for queue_limit
 * queued jobs (1 to 2^24).  0, RT_EINVAL, RT_ENOMEM or RT_ESYS. */
int rt_pool_new(unsigned workers, uint32_t queue_limit, struct rt_pool **out);

/* Name the host of the pool's hosted jobs, which must outlive the workers, and the
 * size of the stacks that they need.
 * Thread: the owner, before the first use. */
void rt_pool_set_host(struct rt_pool *pool, const struct rt_host *host, size_t stack_size);

/* Have workers look for the next hosted job for up to limit ns before they sleep.  With
 * one CPU there is nobody to look for: it stays 0.
 * Thread: the owner, before the first use. */
void rt_pool_set_busy_poll(struct rt_pool *pool, uint64_t limit);

/* Start the workers if they have not been.  0, RT_ESYS or RT_ECLOSED.
 * Thread: any.  Blocks: for the creation of threads, once. */
int rt_pool_start(struct rt_pool *pool);

/* Queue a job whose run function and mailbox are set.
 * 0, RT_EFULL or RT_ECLOSED; the job is the pool's only on 0.
 * Thread: any.  GIL: may be held.  Blocks: no. */
int rt_pool_submit(struct rt_pool *pool, struct rt_job *job);

/* Queue all jobs of a list, in order and with one wake-up; the list is empty
 * afterwards.  All or none: 0, RT_EFULL or RT_ECLOSED.
 * Thread: any.  GIL: may be held.  Blocks: no. */
int rt_pool_submit_all(struct rt_pool *pool, struct rt_joblist *jobs);

/* After RT_EFULL: send job, whose mailbox is set, home with RT_OK as soon as the queue has
 * room for one, maybe at once.  Others may take the room before its owner does.  It is
 * told of each job that leaves the queue, so also while the pool closes.
 * Thread: any.  GIL: may be held.  Blocks: no. */
void rt_pool_seek_room(struct rt_pool *pool, struct rt_job *job);

/* Add src to the poller of a pool, which is started if need be, and see to it
 * that somebody leads.  0, RT_ESYS or RT_ECLOSED.
 * Thread: any.  GIL: may be held.  Blocks: for microseconds (rt_source_add()). */
int rt_pool_add_source(struct rt_pool *pool, struct rt_source *src);

/* Finish job and send it home.  Thread: the worker that holds it. */
void rt_pool_complete(struct rt_job *job, int err);

/* Refuse new jobs, finish what there is until `stop_at`, fail the rest, end the
 * workers.  `job`, if given, is posted to its mailbox when the last worker has
 * ended.  Calling again may only bring stop_at nearer; a second job is refused
 * with RT_ECLOSED and stays the caller's.
 * Thread: any.  Blocks: no. */
int rt_pool_close(struct rt_pool *pool, uint64_t stop_at, struct rt_job *job);

/* Send the job of rt_pool_close() home now, with RT_ETIMEOUT: a worker does not end.
 * Thread: any.  Blocks: no. */
void rt_pool_stop_waiting(struct rt_pool *pool);

/* Wait until every worker has ended or `until` passed; whether they have.
 * Thread: any but a worker.  GIL: must not be held.  Blocks: yes. */
bool rt_pool_wait(struct rt_pool *pool, uint64_t until);

/* The owner lets go.  An open pool closes at once.
 * Thread: any.  Blocks: no. */
void rt_pool_release(struct rt_pool *pool);

/* Keep the pool's memory; a matching rt_pool_release_ref() is due. */
void rt_pool_ref(struct rt_pool *pool);
void rt_pool_unref(struct rt_pool *pool);

/* Whether this process is a fork of the one that made the pool. */
bool rt_pool_forked(const struct rt_pool *pool);

/* In a forked child: close what descriptors the pool has.  The memory stays, as
 * its state is that of some moment in the parent's threads. */
void rt_pool_abandon(struct rt_pool *pool);

static inline enum rt_pool_state rt_pool_state(const struct rt_pool *pool)
{
    return (enum rt_pool_state)atomic_load(&pool->state);
}

/* For rt_worker.c. */
struct rt_job *rt_pool_take(struct rt_pool *pool, struct rt_worker *worker);
bool rt_pool_has_turns(const struct rt_worker *worker);
struct rt_job *rt_pool_take_turn(struct rt_worker *worker); /* the worker itself */
void rt_pool_job_ended(struct rt_pool *pool); /* after each job taken was run */
bool rt_pool_check_stopped(struct rt_pool *pool);

/* rt_wake.c: whom to wake. */
bool rt_pool_has_jobs(const struct rt_pool *pool);
bool rt_pool_somebody_idle(const struct rt_pool *pool);
bool rt_pool_wake_one(struct rt_pool *pool);
void rt_pool_wake_all(struct rt_pool *pool);
void rt_pool_call_worker(struct rt_pool *pool); /* there is a job: have somebody come */
void rt_pool_call_leader(struct rt_pool *pool); /* nobody leads: have somebody come */

/* For rt_lane.c.  Count n jobs in as rt_pool_submit() does; 0, RT_EFULL or
 * RT_ECLOSED. */
int rt_pool_admit(struct rt_pool *pool, size_t n);
/* The reverse: n jobs were taken from the queue, or are not put into it after all. */
void rt_pool_leave_queue(struct rt_pool *pool, size_t n);
/* Queue a lane's turn, for one worker or (NULL) for any. */
void rt_pool_put_turn(struct rt_pool *pool, struct rt_job *turn, struct rt_worker *worker);
/* Begin a job that was counted in: whether it is to be run, by the caller. */
bool rt_pool_begin(struct rt_pool *pool, struct rt_job *job, struct rt_worker *worker);
void rt_pool_worker_ended(struct rt_pool *pool);

#endif
