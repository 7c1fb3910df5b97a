/* A pipeline: many commands, and their replies, as one job.
 *
 * The owner encodes command after command into one growing buffer, seals it and
 * ties it to a job.  The exchange writes the buffer in pieces, as it does with
 * any long command, reads the replies meanwhile, collects them here in order,
 * and sends the job home with the last of them: one job, one wake-up.
 *
 *     rds_pipeline_new(&p);
 *     at = rds_pipeline_room(p, size); ... rds_pipeline_added(p, size);
 *     rds_pipeline_seal(p, transaction);
 *     rds_pipeline_tie(p, job, patience);     the job has it now
 *     rds_channel_submit(channel, job); ...   and comes home
 *     p = rds_pipeline_untie(job);
 *     while ((arena = rds_pipeline_replies(p)) != NULL) read at p->read_at
 *
 * MULTI and EXEC are part of the buffer: a transaction is contiguous on whatever
 * connection it takes, and there is no moment at which half of one is queued.
 *
 * Replies lie in pages, whole replies only, and a page that is full is never
 * touched again: so nothing large is copied when more comes, no count of replies
 * is too great for an arena, and the reader frees each page as it leaves it.
 *
 * Correct: one thread at a time has it, as with the job it is tied to. */
#ifndef RDS_PIPELINE_H
#define RDS_PIPELINE_H

#include "rds_job.h"

#define RDS_PAGE ((uint32_t)256 << 10) /* a page with so much in it is full */

struct rds_page {
    struct rds_page *next;
    struct rds_arena arena;
};

struct rds_pipeline {
    char *wire;          /* room for MULTI, then the commands; NULL once seen */
    size_t len, cap;     /* of wire, the room included */
    uint32_t commands;   /* in wire; with MULTI and EXEC once it is sealed */
    bool transaction;
    bool writes;         /* the owner's: some command may change something */
    uint64_t patience;   /* ns that each further reply may take, RT_NEVER: any */

    /* The exchange's. */
    uint32_t passed;     /* commands of which is known where they end */
    size_t passed_len;   /* and where, counted from the request's beginning */
    struct rds_page *first, *last;
    uint32_t reply_at;   /* where in the last page the reply under way begins */

    uint32_t read_at;    /* the reader's place in the first page */
};

/* 0 or RT_ENOMEM.  Thread: owner.  Blocks: no. */
int rds_pipeline_new(struct rds_pipeline **out);
void rds_pipeline_free(struct rds_pipeline *p);

/* Where a command of so many bytes goes, or NULL without memory.  It counts once
 * rds_pipeline_added() says so.  Thread: owner.  Blocks: no. */
char *rds_pipeline_room(struct rds_pipeline *p, size_t size);
void rds_pipeline_added(struct rds_pipeline *p, size_t size);

/* No more commands; wrapped in MULTI and EXEC if it is a transaction.
 * 0 or RT_ENOMEM.  Thread: owner.  Blocks: no. */
int rds_pipeline_seal(struct rds_pipeline *p, bool transaction);

/* Tie it to a fresh job, which frees it from now on; and take it off again.
 * Thread: owner.  Blocks: no. */
void rds_pipeline_tie(struct rds_pipeline *p, struct rds_job *job, uint64_t patience);
struct rds_pipeline *rds_pipeline_untie(struct rds_job *job);

/* ---- for the exchange; Thread: who holds the connection ------------------------ */

/* Whether command `index` (0 is the first) ends within the first `sent` bytes of
 * the request.  Asked with a growing index: each command is looked at once. */
bool rds_pipeline_is_out(struct rds_pipeline *p, uint32_t index, uint64_t sent);

/* A reply begins: where it goes, or NULL without memory. */
struct rds_arena *rds_pipeline_begin(struct rds_pipeline *p);

/* The reply under way is replaced by a failure node with a text. */
void rds_pipeline_fail_reply(struct rds_pipeline *p, const char *text);

/* Nobody wants the replies any more. */
void rds_pipeline_drop_replies(struct rds_pipeline *p);

/* The server has seen some of it: it is never sent again. */
void rds_pipeline_forget_wire(struct rds_pipeline *p, struct rds_job *job);

/* What is said of a command, said of a pipeline, in out. */
const char *rds_pipeline_say(char *out, size_t size, const char *text);

/* ---- for the reader ---------------------------------------------------------------- */

/* The arena that holds the next reply, at p->read_at; NULL after the last.  What
 * was read of earlier arenas is freed.  Thread: owner.  Blocks: no. */
const struct rds_arena *rds_pipeline_replies(struct rds_pipeline *p);

#endif
