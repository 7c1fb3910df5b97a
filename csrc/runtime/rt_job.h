/* A job: one call on its way from the thread that made it to a worker and back.
 *
 * A job is in exactly one place at a time: with its owner, in a queue, with a
 * worker, in a mailbox.  Every job that was accepted comes back to the mailbox
 * it names exactly once, whatever became of it, so that its owner is the only
 * one who makes and frees jobs and no reference count is needed.
 *
 * States, moved by rt_job_move() and rt_job_finish() alone:
 *
 *   IDLE --submit--> QUEUED --take--> RUNNING --finish--> DONE --recycle--> IDLE
 *                      | ^              |  |
 *                      | +---put back---+  +--owner cancels--> ABANDONED
 *                      +--owner cancels--> CANCELLED
 *
 * CANCELLED: nothing of it was or will be done.  ABANDONED: it may be done, its
 * result is dropped.  Both are still finished by a worker and come home.
 *
 * A job without a mailbox has nobody who waits for it in one place.  It is run
 * whatever becomes of it, with the reason in `err` where it is not to be done, and
 * ends itself.
 *
 * Why it is right: the state is one atomic byte and every move a compare and
 * exchange, so that when an owner cancels while a worker takes, exactly one of
 * them wins and both know which. */
#ifndef RT_JOB_H
#define RT_JOB_H

#include "rt_base.h"
#include "rt_err.h"
#include "rt_queue.h"

enum rt_job_state {
    RT_JOB_IDLE = 0,
    RT_JOB_QUEUED,
    RT_JOB_RUNNING,
    RT_JOB_CANCELLED,
    RT_JOB_ABANDONED,
    RT_JOB_DONE,
};

struct rt_mailbox;
struct rt_worker;

struct rt_job {
    struct rt_node node;        /* link in a submission stack or a mailbox */
    struct rt_job *next;        /* link in a list or chain */
    struct rt_mailbox *mailbox; /* where it comes home, or NULL */
    void (*run)(struct rt_job *job, struct rt_worker *worker); /* pool jobs only */
    void *owner;                /* the owner's own; nobody else touches it */
    uint64_t deadline;          /* absolute, RT_NEVER for none */
    int err;                    /* enum rt_err, valid once DONE */
    uint8_t kind;               /* the owner's own: what the job is part of */
    bool hosted;                /* it runs with what the worker holds (rt_worker.h) */
    bool turn;                  /* it is a lane's turn (rt_lane.h) */
    _Atomic uint8_t state;      /* enum rt_job_state */
};

/* Make a job that its owner is about to submit.  Thread: owner. */
static inline void rt_job_init(struct rt_job *job, struct rt_mailbox *mailbox, uint64_t deadline)
{
    job->next = NULL;
    job->mailbox = mailbox;
    job->run = NULL;
    job->owner = NULL;
    job->deadline = deadline;
    job->err = RT_OK;
    job->kind = 0;
    job->hosted = false;
    job->turn = false;
    atomic_store_explicit(&job->state, RT_JOB_IDLE, memory_order_relaxed);
}

static inline enum rt_job_state rt_job_state(const struct rt_job *job)
{
    return (enum rt_job_state)atomic_load_explicit(&job->state, memory_order_acquire);
}

/* Move job from one state to another; false when it was not in `from`.
 * Thread: any.  Blocks: no. */
bool rt_job_move(struct rt_job *job, enum rt_job_state from, enum rt_job_state to);

/* Take back what was submitted: CANCELLED when no worker had it yet, ABANDONED
 * when one had.  False when it was done already.
 * Thread: owner.  Blocks: no. */
bool rt_job_cancel(struct rt_job *job);

/* Close job with err, whether wanted still or not.  Returns whether it was
 * wanted.  The caller posts it next.
 * Thread: the worker that holds job.  Blocks: no. */
bool rt_job_finish(struct rt_job *job, int err);

/* A FIFO of jobs held by one thread at a time. */
struct rt_joblist {
    struct rt_job *head, *tail;
    size_t count;
};

static inline void rt_joblist_init(struct rt_joblist *list)
{
    list->head = list->tail = NULL;
    list->count = 0;
}

static inline void rt_joblist_append(struct rt_joblist *list, struct rt_job *job)
{
    job->next = NULL;
    if (list->tail != NULL)
        list->tail->next = job;
    else
        list->head = job;
    list->tail = job;
    list->count++;
}

static inline struct rt_job *rt_joblist_pop(struct rt_joblist *list)
{
    struct rt_job *job = list->head;

    if (job == NULL)
        return NULL;
    list->head = job->next;
    if (list->head == NULL)
        list->tail = NULL;
    list->count--;
    job->next = NULL;
    return job;
}

/* Put all of `front` before what list holds; front is empty afterwards. */
static inline void rt_joblist_prepend_all(struct rt_joblist *list, struct rt_joblist *front)
{
    if (front->head == NULL)
        return;
    front->tail->next = list->head;
    list->head = front->head;
    if (list->tail == NULL)
        list->tail = front->tail;
    list->count += front->count;
    rt_joblist_init(front);
}

#endif
