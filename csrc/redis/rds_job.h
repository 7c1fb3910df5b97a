/* A Redis command as a job: its bytes on the way out, its reply on the way in.
 * A pipeline is one job as well (rds_pipeline.h).
 *
 * The owner encodes the command (rds_cmd.h) and submits it to a channel; a
 * worker sends it and fills in the reply or the reason of its failure; the job
 * comes home to its mailbox.
 *
 * `start` and `end` are the command's place in the connection's stream of bytes.
 * With the count of bytes the socket took they answer the one question that
 * matters when a connection breaks: can the server have seen any of it? */
#ifndef RDS_JOB_H
#define RDS_JOB_H

#include "../runtime/rt_job.h"
#include "rds_reply.h"

struct rds_lease;
void rds_lease_unref(struct rds_lease *lease);
void rds_lease_kill(struct rds_lease *lease);

#define RDS_INLINE 136 /* bytes of a command or reply kept in the job itself */

struct rds_pipeline;

struct rds_job {
    struct rt_job base;
    char *request; /* RESP bytes; `inline_bytes`, on the heap or the pipeline's */
    size_t request_len;
    uint64_t start, end; /* place in the stream, valid once appended */
    struct rds_arena reply;
    /* Of a command that has a connection for itself (rds_lease.h). */
    struct rds_lease *_Atomic lease; /* the one it was given, kept until rds_job_fini() */
    uint64_t patience; /* ns it may take from when it is sent */
    bool leased;       /* it was submitted as one */
    bool holds;        /* it has no command: its owner holds the connection (rds_held.h) */
    struct rds_pipeline *pipeline; /* owned; where its replies go, or NULL */
    uint32_t awaited; /* replies to come: 1 for a command */
    uint32_t mark;    /* which command it is (rds_aside.h); 0: not looked at, or none */
    bool maybe_run;  /* it failed, but the server may have run it */
    bool reads;      /* it changes nothing: running it twice does no harm */
    bool tombstone;  /* stands for a timed-out job whose reply is due */
    char inline_bytes[RDS_INLINE];
};

void rds_pipeline_free(struct rds_pipeline *p);

static inline struct rds_job *rds_job_of(struct rt_job *job)
{
    return RT_CONTAINER_OF(job, struct rds_job, base);
}

/* A job on memory of the owner's, with an empty command. */
static inline void rds_job_init(struct rds_job *job, struct rt_mailbox *mailbox, uint64_t deadline)
{
    rt_job_init(&job->base, mailbox, deadline);
    job->request = job->inline_bytes;
    job->request_len = 0;
    job->start = job->end = 0;
    atomic_init(&job->lease, NULL);
    job->patience = RT_NEVER;
    job->leased = job->holds = false;
    job->pipeline = NULL;
    job->awaited = 1;
    job->mark = 0;
    job->maybe_run = job->reads = job->tombstone = false;
    rds_arena_init(&job->reply, job->inline_bytes, RDS_INLINE);
}

/* Free what the job has on the heap; the job itself is the owner's. */
static inline void rds_job_fini(struct rds_job *job)
{
    if (job->pipeline != NULL)
        rds_pipeline_free(job->pipeline);
    else if (job->request != job->inline_bytes)
        free(job->request);
    job->pipeline = NULL;
    job->request = job->inline_bytes;
    rds_arena_free(&job->reply);
    if (job->leased && atomic_load(&job->lease) != NULL) {
        if (job->holds)
            rds_lease_kill(atomic_load(&job->lease)); /* nobody has claimed it */
        rds_lease_unref(atomic_exchange(&job->lease, NULL));
    }
}

#endif
