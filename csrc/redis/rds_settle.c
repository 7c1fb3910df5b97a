/* Settling: how jobs leave a connection, answered, failed, or past their deadline.
 *
 * What was not written is never lost with a connection: it goes back to the queue and
 * over the next one.  What the server can have seen fails, and says that it may have
 * run.  A command that is overdue leaves a tombstone behind for its reply. */
#include "rds_conn.h"
#include "rds_lease.h"
#include "rds_pipeline.h"

#define HOME_CHUNK 64        /* jobs posted at once */
#define SILENCE (1 * RT_SEC) /* no byte for so long: the peer is gone */

/* ---- going home ----------------------------------------------------------- */

void rds_settle_flush(struct rds_conn *conn)
{
    if (conn->home.head == NULL)
        return;
    /* Before its caller knows: the next call must find the lease given back. */
    if (conn->lease != NULL)
        rds_lease_finished(conn->lease);
    rt_mailbox_post(conn->home.head->mailbox, &conn->home);
}

void rds_settle(struct rds_conn *conn, struct rds_job *job, int err)
{
    struct rds_stats *stats = &conn->channel->stats;

    if (job->tombstone) {
        free(job);
        conn->tombstones--;
        return;
    }
    if (!rt_job_finish(&job->base, err))
        conn->spoiled = true;
    else if (err != RT_OK)
        rt_count(&stats->errors, 1);
    if (conn->home.head != NULL && (conn->home.head->mailbox != job->base.mailbox ||
                                    conn->home.count >= HOME_CHUNK))
        rds_settle_flush(conn);
    rt_joblist_append(&conn->home, &job->base);
    /* Ordered before the next look at the inbox: rds_channel_alone(). */
    atomic_store(&conn->finished, rt_read(&conn->finished) + 1);
}

void rds_settle_failed(struct rds_conn *conn, struct rds_job *job, int err, bool maybe_run,
                       const char *text)
{
    char of_pipeline[360];

    if (!job->tombstone) {
        job->maybe_run = maybe_run;
        if (job->pipeline != NULL)
            text = rds_pipeline_say(of_pipeline, sizeof of_pipeline, text);
        rds_arena_set_text(&job->reply, RDS_ERROR, text);
    }
    rds_settle(conn, job, err);
}

/* ---- failing ---------------------------------------------------------------- */

static void describe(char *out, size_t size, struct rds_conn *conn, const char *what,
                     bool maybe_run)
{
    snprintf(out, size, "%s (%s): %s", what, rds_channel_endpoint(conn->channel),
             maybe_run ? "the command was sent and may have run"
                       : "the command was not sent, so it was not executed");
}

/* Whether the server can have seen any byte of job's command. */
static bool maybe_seen(const struct rds_conn *conn, const struct rds_job *job)
{
    return job->start < conn->written;
}

/* Put what is in flight and unseen back to the head of pending, fail the rest. */
static void settle_inflight(struct rds_conn *conn, int err, const char *text, bool keep)
{
    struct rt_joblist back;
    struct rt_job *base;

    rt_joblist_init(&back);
    if (conn->head_sent > 0) {
        /* The head of pending was being appended: it is the last in flight. */
        struct rt_job *head = rt_joblist_pop(&conn->pending);

        conn->head_sent = 0;
        rt_joblist_append(&conn->inflight, head);
    }
    while ((base = rt_joblist_pop(&conn->inflight)) != NULL) {
        struct rds_job *job = rds_job_of(base);

        if (!maybe_seen(conn, job) && keep && !job->tombstone) {
            if (rt_job_move(base, RT_JOB_RUNNING, RT_JOB_QUEUED)) {
                rt_joblist_append(&back, base);
            } else {
                rds_settle(conn, job, RT_ECANCELLED);
            }
        } else {
            rds_settle_failed(conn, job, err, maybe_seen(conn, job), text);
        }
    }
    rt_joblist_prepend_all(&conn->pending, &back);
}

void rds_settle_lost(struct rds_conn *conn, int err, const char *why)
{
    bool was_ready = rds_conn_state(conn) == RDS_CONN_READY;
    bool had_commands = conn->inflight.count > 0 || conn->head_sent > 0;
    char reason[128], text[320];

    snprintf(reason, sizeof reason, "%s", why); /* it may be in the context */
    if (!was_ready) {
        rds_connect_failed(conn, err, reason, rt_now());
        return;
    }
    snprintf(text, sizeof text, "%s %.120s: %s; the command was sent and may have run",
             err == RT_EPROTOCOL  ? "Protocol error from"
             : err == RT_ETIMEOUT ? "Timeout on the connection to"
                                  : "Connection lost to",
             rds_channel_endpoint(conn->channel), reason);
    settle_inflight(conn, err, text, true);
    rds_settle_flush(conn);
    if (rds_lease_is_held(conn->lease)) {
        snprintf(text, sizeof text, "Connection to %.120s lost: %s",
                 rds_channel_endpoint(conn->channel), reason);
        rds_held_end(conn, err, text);
    }
    rt_count(&conn->channel->stats.retained, conn->pending.count);
    if (had_commands)
        rt_count(&conn->channel->stats.losses, 1);
    if (conn == conn->channel->conn)
        rds_aside_disconnect(conn->channel); /* the next server may be another */
    rds_connect_close(conn);
    rds_conn_move(conn, RDS_CONN_IDLE);
}

void rds_settle_pending(struct rds_conn *conn, int err, const char *text)
{
    struct rt_job *base;

    while ((base = rt_joblist_pop(&conn->pending)) != NULL)
        rds_settle_failed(conn, rds_job_of(base), err, false, text);
    rds_settle_flush(conn);
}

void rds_settle_all(struct rds_conn *conn, int err, const char *what)
{
    char text[320];

    describe(text, sizeof text, conn, what, true);
    settle_inflight(conn, err, text, true);
    describe(text, sizeof text, conn, what, false);
    rds_settle_pending(conn, err, text);
}

/* ---- deadlines -------------------------------------------------------------- */

/* A job whose command is out leaves a stand-in for its reply and goes home. */
static bool bury(struct rds_conn *conn, struct rt_job **link, struct rds_job *job)
{
    struct rds_job *stone = calloc(1, sizeof *stone);
    struct rt_joblist *list = &conn->inflight;

    if (stone == NULL)
        return false;
    stone->tombstone = true;
    stone->start = job->start;
    stone->end = job->end;
    stone->awaited = job->awaited;
    atomic_init(&stone->base.state, RT_JOB_ABANDONED);
    stone->base.next = job->base.next;
    *link = &stone->base;
    if (list->tail == &job->base)
        list->tail = &stone->base;
    conn->tombstones++;
    if (list->head == &stone->base)
        conn->builder.into = NULL; /* if its reply is half here: drop the rest */
    return true;
}

static uint64_t expire_pending(struct rds_conn *conn, uint64_t now, uint64_t next)
{
    struct rt_joblist kept;
    struct rt_job *base;
    char text[320];

    rt_joblist_init(&kept);
    while ((base = rt_joblist_pop(&conn->pending)) != NULL) {
        if (base->deadline > now) {
            if (base->deadline < next)
                next = base->deadline;
            rt_joblist_append(&kept, base);
            continue;
        }
        rt_count(&conn->channel->stats.timeouts, 1);
        describe(text, sizeof text, conn, "Timeout before the command could be sent", false);
        rds_settle_failed(conn, rds_job_of(base), RT_ETIMEOUT, false, text);
    }
    conn->pending = kept;
    return next;
}

static uint64_t expire_inflight(struct rds_conn *conn, uint64_t now, uint64_t next)
{
    struct rt_job **link = &conn->inflight.head;
    char text[320];

    while (*link != NULL) {
        struct rds_job *job = rds_job_of(*link);

        if (job->tombstone || job->base.deadline > now ||
            rt_job_state(&job->base) != RT_JOB_RUNNING) {
            if (!job->tombstone && rt_job_state(&job->base) == RT_JOB_RUNNING &&
                job->base.deadline < next)
                next = job->base.deadline;
            link = &(*link)->next;
            continue;
        }
        if (!bury(conn, link, job))
            return now; /* try again at once: memory may be back */
        link = &(*link)->next;
        job->base.next = NULL;
        rt_count(&conn->channel->stats.timeouts, 1);
        describe(text, sizeof text, conn, "Timeout waiting for the reply", true);
        rds_settle_failed(conn, job, RT_ETIMEOUT, true, text);
    }
    return next;
}

/* A command that is partly out cannot be taken back alone: the connection goes
 * with it.  Returns whether it did. */
static bool expire_head(struct rds_conn *conn, uint64_t now)
{
    struct rds_job *job;
    char text[320];
    bool seen;

    if (conn->head_sent == 0 || conn->pending.head->deadline > now)
        return false;
    job = rds_job_of(rt_joblist_pop(&conn->pending));
    conn->head_sent = 0;
    seen = maybe_seen(conn, job);
    rt_count(&conn->channel->stats.timeouts, 1);
    describe(text, sizeof text, conn, "Timeout sending the command", seen);
    rds_settle_failed(conn, job, RT_ETIMEOUT, seen, text);
    rds_settle_lost(conn, RT_ETIMEOUT, "the server stopped reading");
    return true;
}

/* Whether the reply that is overdue has begun to come.  Its rest may never, and
 * then it would swallow the next one: the connection is given up. */
static bool stuck_in_reply(const struct rds_conn *conn)
{
    const redisReader *r;

    if (rds_conn_state(conn) != RDS_CONN_READY || conn->inflight.head == NULL ||
        !rds_job_of(conn->inflight.head)->tombstone)
        return false;
    r = conn->ctx->reader;
    /* Between two replies hiredis may stand at the first item of none (type -1). */
    return r->ridx > 0 || (r->ridx == 0 && r->task[0]->type != -1) || r->len > r->pos ||
           conn->skip > 0;
}

void rds_settle_expired(struct rds_conn *conn, uint64_t now)
{
    uint64_t next;

    if (expire_head(conn, now))
        rds_settle_flush(conn);
    next = expire_pending(conn, now, RT_NEVER);
    next = expire_inflight(conn, now, next);
    rds_settle_flush(conn);
    if (stuck_in_reply(conn)) {
        rds_settle_lost(conn, RT_ETIMEOUT, "only a part of an overdue reply came");
        return;
    }
    if (conn->tombstones > 0 && rds_conn_state(conn) == RDS_CONN_READY) {
        /* Replies are overdue.  A peer that sends nothing at all is gone. */
        uint64_t gone = rt_after(conn->quiet_since, SILENCE);

        if (gone <= now) {
            rds_settle_lost(conn, RT_ETIMEOUT, "nothing came, not even an overdue reply");
            return;
        }
        if (gone < next)
            next = gone;
    }
    if (rds_lease_is_held(conn->lease)) {
        uint64_t waits = rds_held_expire(conn, now);

        if (waits < next)
            next = waits;
    }
    rt_source_due(&conn->source, next);
}
