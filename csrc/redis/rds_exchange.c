/* The exchange: commands out, replies in, each matched to its command.
 *
 * Full duplex: what is queued is written as the socket takes it and what has
 * come is read, in turns, and neither waits for the other.  So a server that
 * stops reading until its replies are taken cannot deadlock with us, and tasks
 * that await at the same time become one deep pipeline.
 *
 * Matching is by order alone, as the protocol has it.  Therefore any doubt about
 * the order ends the connection: a reply nobody asked for, a reply to a command
 * that is not wholly written, a byte the parser does not understand. */
#include "rds_conn.h"
#include "rds_lease.h"
#include "rds_pipeline.h"

#ifndef RDS_MUTANT_MATCH
#define RDS_MUTANT_MATCH 0 /* 1: a planted bug, see match() */
#endif

#define OUT_CHUNK ((size_t)64 << 10)  /* bytes kept in hiredis's output buffer */
#define TURNS 16                      /* writes, and reads, before others have theirs */
#define MAX_LINE ((size_t)1 << 20)   /* bytes of a line: a length, a status, an error */
#define SANE_LENGTH (UINT64_C(1) << 40)

/* ---- taking and writing ------------------------------------------------- */

void rds_exchange_take(struct rds_conn *conn)
{
    struct rt_node *node = rt_stack_take(&conn->inbox);
    uint64_t due = RT_NEVER, outstanding;
    bool foreign = false;

    if (node == NULL)
        return;
    while (node != NULL) {
        struct rt_job *job = RT_CONTAINER_OF(node, struct rt_job, node);

        node = node->next;
        if (job->mailbox != conn->company) {
            conn->company = job->mailbox;
            conn->company_run = 0;
        }
        conn->company_run++;
        foreign = foreign || (conn->loan != NULL && (job->mailbox != conn->loan->mailbox ||
                                                     rds_job_of(job)->holds));
        rt_joblist_append(&conn->pending, job);
        if (job->deadline < due)
            due = job->deadline;
    }
    if (due != RT_NEVER)
        rt_source_due(&conn->source, due);
    if (foreign)
        rds_loan_recall(conn);
    outstanding = conn->pending.count + conn->inflight.count;
    rt_atomic_max(&conn->channel->stats.high_water, outstanding);
}

/* Append what fits; a large command goes in pieces, so that the output buffer
 * stays small.  `begun`: nothing but the rest of one that is partly out.
 * False: no memory. */
static bool append(struct rds_conn *conn, bool begun)
{
    redisContext *c = conn->ctx;

    while (conn->pending.head != NULL && sdslen(c->obuf) < OUT_CHUNK &&
           (conn->head_sent > 0 || !begun)) {
        struct rds_job *job = rds_job_of(conn->pending.head);
        size_t n;

        if (conn->head_sent == 0) {
            if (!rt_job_move(&job->base, RT_JOB_QUEUED, RT_JOB_RUNNING)) {
                /* Cancelled before any of it was sent. */
                rt_joblist_pop(&conn->pending);
                rds_settle(conn, job, RT_ECANCELLED);
                continue;
            }
            job->start = conn->appended;
            job->end = job->start + job->request_len;
            if (job->holds) {
                rt_joblist_pop(&conn->pending);
                rds_held_begin(conn);
                rds_settle(conn, job, RT_OK);
                break;
            }
            if (conn->lease != NULL)
                rds_lease_sending(conn->lease, job);
        }
        n = job->request_len - conn->head_sent;
        if (n > OUT_CHUNK)
            n = OUT_CHUNK;
        if (redisAppendFormattedCommand(c, job->request + conn->head_sent, n) != REDIS_OK)
            return false;
        conn->appended += n;
        conn->head_sent += n;
        if (conn->head_sent < job->request_len)
            continue;
        conn->head_sent = 0;
        rt_joblist_pop(&conn->pending);
        if (conn->inflight.head == NULL)
            conn->quiet_since = rt_now();
        rt_joblist_append(&conn->inflight, &job->base);
    }
    return true;
}

bool rds_exchange_write(struct rds_conn *conn)
{
    redisContext *c = conn->ctx;
    struct rds_stats *stats = &conn->channel->stats;
    bool may_append = rds_conn_state(conn) == RDS_CONN_READY && !conn->pinging;
    bool leaving = rds_conn_leaving(conn);
    bool progress = false;
    unsigned turns;
    int done = 1;

    /* Bounded, as whoever submits writes too and has other things to do. */
    for (turns = 0; turns < TURNS; turns++) {
        uint64_t before;

        if (may_append &&
            !(rds_lease_is_held(conn->lease) ? rds_held_append(conn, OUT_CHUNK)
                                             : append(conn, leaving))) {
            rds_settle_lost(conn, RT_ENOMEM, "no memory for the output buffer");
            return true;
        }
        if (sdslen(c->obuf) == 0)
            break;
        before = conn->appended - sdslen(c->obuf);
        if (redisBufferWrite(c, &done) != REDIS_OK) {
            rds_settle_lost(conn, RT_ELOST, c->errstr);
            return true;
        }
        conn->written = conn->appended - sdslen(c->obuf);
        rt_count(&stats->writes, 1);
        rt_count(&stats->bytes_out, conn->written - before);
        progress = progress || conn->written > before;
        if (!done)
            break;
    }
    /* Ask for the edge only while there is something left: on a Unix socket
     * every read of the peer's would wake us otherwise. */
    if (conn->stream != NULL && sdslen(c->obuf) == 0)
        done = rds_stream_flush(conn->stream);
    if (rds_lease_is_held(conn->lease))
        rds_held_sent(conn);
    if (!done != conn->watch_write) {
        conn->watch_write = !done;
        if (conn->loan != NULL)
            rds_loan_recall(conn);
        else if (rt_source_watch(&conn->source, c->fd, conn->watch_write, true) != RT_OK) {
            rds_settle_lost(conn, RT_ESYS, "epoll refused the socket");
            return true;
        }
    }
    return progress;
}

/* ---- reading and matching ----------------------------------------------- */

/* The job that the next reply is for: the oldest in flight, or the pipeline of
 * which only a part is out. */
static struct rds_job *answered_next(const struct rds_conn *conn)
{
    if (conn->inflight.head != NULL)
        return rds_job_of(conn->inflight.head);
    return conn->head_sent > 0 ? rds_job_of(conn->pending.head) : NULL;
}

/* Whether the command whose reply begins is wholly out, as it must be. */
static bool is_out(const struct rds_conn *conn, const struct rds_job *job)
{
    struct rds_pipeline *p = job->pipeline;

    if (job->end <= conn->written)
        return true;
    if (job->start >= conn->written)
        return false;
    if (p != NULL)
        return rds_pipeline_is_out(p, p->commands - job->awaited, conn->written - job->start);
    return job->tombstone && job->awaited > 1; /* a pipeline's, whose bytes are gone */
}

/* The builder asks where the reply that begins belongs. */
static bool begin_reply(void *owner, struct rds_arena **into)
{
    struct rds_conn *conn = owner;
    struct rds_job *job;

    if (conn->pinging || rds_conn_state(conn) != RDS_CONN_READY) {
        *into = &conn->scratch;
        conn->scratch.len = 0;
        return true;
    }
    if (rds_lease_is_held(conn->lease)) {
        if (!rds_held_receive(conn, into))
            conn->builder.bad = "no memory for a reply";
        return conn->builder.bad == NULL;
    }
    job = answered_next(conn);
    if (job == NULL || !is_out(conn, job))
        return false;
    if (job->reads && job->mark == 0)
        job->mark = rds_aside_mark(job); /* now: its bytes give way to the reply's */
    if (rt_job_state(&job->base) != RT_JOB_RUNNING) {
        *into = NULL;
        if (job->pipeline != NULL)
            rds_pipeline_drop_replies(job->pipeline);
    } else if (job->pipeline != NULL) {
        *into = rds_pipeline_begin(job->pipeline);
        if (*into == NULL)
            conn->builder.bad = "no memory for a reply";
    } else {
        *into = &job->reply;
        job->reply.len = 0;
    }
    return conn->builder.bad == NULL;
}

void rds_exchange_attach(struct rds_conn *conn)
{
    redisContext *c = conn->ctx;

    rds_wire_attach(conn);
    c->reader->fn = &rds_reply_functions;
    c->reader->privdata = &conn->builder;
    c->reader->maxbuf = (size_t)1 << 20;
    memset(&conn->builder, 0, sizeof conn->builder);
    conn->builder.begin = begin_reply;
    conn->builder.owner = conn;
    conn->builder.reader = c->reader;
    conn->builder.max_bytes = conn->channel->options.max_reply;
    conn->appended = conn->written = conn->skip = 0;
    conn->readable = conn->hung_up = conn->pinging = conn->watch_write = false;
    conn->delays_acks = false;
}

#if RT_DEBUG || RDS_MUTANT_MATCH
_Atomic bool rds_mutant_match = RDS_MUTANT_MATCH;
#endif

static void say_too_big(const struct rds_conn *conn, char *text, size_t size)
{
    snprintf(text, size, "the reply from %.90s is over the cap of %llu bytes",
             rds_channel_endpoint(conn->channel),
             (unsigned long long)conn->builder.max_bytes);
}

/* One of a pipeline's replies is there. */
static void keep_reply(const struct rds_conn *conn, struct rds_job *job, bool too_big)
{
    struct rds_pipeline *p = job->pipeline;
    char text[160];

    job->awaited--;
    if (p == NULL || rt_job_state(&job->base) != RT_JOB_RUNNING)
        return;
    if (too_big && p->last != NULL) {
        say_too_big(conn, text, sizeof text);
        rds_pipeline_fail_reply(p, text);
    }
    if (p->wire != NULL && job->end <= conn->written)
        rds_pipeline_forget_wire(p, job);
}

/* A whole reply is there: whose is it? */
static bool match(struct rds_conn *conn, uint64_t *count)
{
    struct rds_builder *b = &conn->builder;
    struct rds_stats *stats = &conn->channel->stats;
    struct rds_job *job;
    bool too_big = b->too_big;

    b->skipped = false;
    if (b->out_of_band) {
        rt_count(&stats->pushes, 1);
        return true;
    }
    if (conn->pinging || rds_conn_state(conn) != RDS_CONN_READY) {
        rds_handshake_reply(conn);
        return conn->ctx != NULL;
    }
    if (rds_lease_is_held(conn->lease)) {
        char text[160];

        if (too_big)
            say_too_big(conn, text, sizeof text);
        rds_held_received(conn, too_big ? text : NULL);
        (*count)++;
        return true;
    }
    job = answered_next(conn);
    if (job->pipeline != NULL || job->awaited > 1) {
        keep_reply(conn, job, too_big);
        if (job->awaited > 0) {
            (*count)++;
            if (job->tombstone || rt_job_state(&job->base) != RT_JOB_RUNNING)
                rt_count(&stats->dropped, 1);
            return true;
        }
        too_big = false; /* that stands in the reply's place */
    }
    /* The last command of a pipeline was out before it could be answered. */
    RT_CHECK(conn->inflight.head == &job->base);
    (void)rt_joblist_pop(&conn->inflight);
#if RT_DEBUG || RDS_MUTANT_MATCH
    /* Off by one after a cancelled command: the tests show that this is caught. */
    if (atomic_load_explicit(&rds_mutant_match, memory_order_relaxed) &&
        rt_job_state(&job->base) == RT_JOB_ABANDONED && conn->inflight.head != NULL) {
        rt_joblist_append(&conn->inflight, &job->base);
        job = rds_job_of(rt_joblist_pop(&conn->inflight));
    }
#endif
    (*count)++;
    if (job->mark != 0)
        rds_aside_heard(conn, job, too_big ? UINT64_MAX : b->bytes);
    if (job->tombstone || rt_job_state(&job->base) != RT_JOB_RUNNING)
        rt_count(&stats->dropped, 1);
    if (too_big) {
        char text[160];

        say_too_big(conn, text, sizeof text);
        rds_settle_failed(conn, job, RT_ETOOBIG, true, text);
    } else {
        rds_settle(conn, job, RT_OK);
    }
    return true;
}

/* A string that is declared longer than the cap is not waited for in memory: an
 * empty one takes its place and its bytes are dropped as they come.  False: the
 * stream cannot be trusted. */
static bool skip_long_string(struct rds_conn *conn)
{
    redisReader *r = conn->ctx->reader;
    const redisReadTask *task;
    const char *p, *end;
    uint64_t declared = 0, have;
    const char *stand_in;
    size_t header;

    if (r->ridx < 0 || conn->builder.max_bytes < 1024)
        return true;
    task = r->task[r->ridx];
    if (task->type != REDIS_REPLY_STRING && task->type != REDIS_REPLY_VERB)
        return true;
    p = r->buf + r->pos;
    end = memchr(p, '\r', r->len - r->pos);
    if (end == NULL || end + 1 >= r->buf + r->len || end - p > 20)
        return end == NULL || end - p <= 20;
    for (header = 0; p + header < end; header++) {
        if (p[header] < '0' || p[header] > '9')
            return true; /* hiredis says what is wrong with it */
        declared = declared * 10 + (uint64_t)(p[header] - '0');
        if (declared > SANE_LENGTH)
            return false;
    }
    if (declared <= conn->builder.max_bytes)
        return true;
    header += 2;
    have = r->len - r->pos - header;
    if (have >= declared + 2)
        return true; /* it is all here; the builder drops it */
    stand_in = task->type == REDIS_REPLY_VERB ? "4\r\ntxt:\r\n" : "0\r\n\r\n";
    if (header + have < strlen(stand_in))
        return true; /* too little to write over: look again when more has come */
    conn->skip = declared + 2 - have;
    conn->builder.skipped = conn->builder.too_big = true;
    conn->builder.into = NULL;
    memcpy(r->buf + r->pos, stand_in, strlen(stand_in));
    r->len = r->pos + strlen(stand_in);
    sdssetlen(r->buf, r->len);
    return true;
}

/* Whether what is buffered is a line that goes on and on. */
static bool endless_line(const redisReader *r)
{
    return r->len - r->pos > MAX_LINE && memchr(r->buf + r->pos, '\r', MAX_LINE) == NULL;
}

/* Parse what is buffered.  False: the connection is gone. */
static bool parse(struct rds_conn *conn, uint64_t *count)
{
    redisReader *r = conn->ctx->reader;
    char why[160];

    for (;;) {
        void *reply = NULL;

        if (conn->skip > 0)
            return true; /* the stand-in waits until the last byte is dropped */
        if (redisReaderGetReply(r, &reply) != REDIS_OK || conn->builder.bad != NULL) {
            snprintf(why, sizeof why, "%s", conn->builder.bad != NULL ? conn->builder.bad : r->errstr);
            rds_settle_lost(conn, RT_EPROTOCOL, why);
            return false;
        }
        if (reply != NULL) {
            if (!match(conn, count))
                return false;
            if (r->pos == r->len)
                return true;
            continue;
        }
        if (!skip_long_string(conn)) {
            rds_settle_lost(conn, RT_EPROTOCOL, "a string of an impossible length");
            return false;
        }
        if (endless_line(r)) {
            rds_settle_lost(conn, RT_EPROTOCOL, "a line without an end");
            return false;
        }
        return true;
    }
}

/* Drop bytes of an over-long string.  Returns what a read returns. */
static int drop_bytes(struct rds_conn *conn)
{
    char waste[16 << 10];
    size_t want = conn->skip < sizeof waste ? (size_t)conn->skip : sizeof waste;
    ssize_t n = conn->funcs.read(conn->ctx, waste, want);

    if (n < 0)
        return REDIS_ERR;
    conn->skip -= (uint64_t)n;
    return REDIS_OK;
}

/* A pipeline that is being answered has its time anew for each reply: it is many
 * commands, and however many, it is the server's silence that ends it. */
static void renew_deadline(struct rds_conn *conn)
{
    struct rds_job *job = answered_next(conn);

    if (job == NULL || job->pipeline == NULL || job->pipeline->patience == RT_NEVER ||
        job->awaited == job->pipeline->commands)
        return;
    job->base.deadline = rt_after(conn->quiet_since, job->pipeline->patience);
}

/* What a connection that cannot be read is: lost, or refused by what the server
 * says of our certificate, which in TLS 1.3 comes after the handshake. */
static int loss(const struct rds_conn *conn)
{
    return conn->stream != NULL && conn->stream->refused &&
                   rds_conn_state(conn) != RDS_CONN_READY
               ? RT_ETLS
               : RT_ELOST;
}

/* Read at most so many times.  Sets *progress when there was anything, the end of
 * the connection too.  Returns the bytes. */
static size_t read_some(struct rds_conn *conn, struct rt_worker *worker, unsigned most,
                        bool *progress)
{
    struct rds_stats *stats = &conn->channel->stats;
    uint64_t count = 0, bytes = 0;
    unsigned turns;

    for (turns = 0; conn->readable && turns < most; turns++) {
        int status;

        if (rds_lease_is_held(conn->lease) && rds_held_is_full(conn))
            break;
        status = conn->skip > 0 ? drop_bytes(conn) : redisBufferRead(conn->ctx);

        if (status != REDIS_OK) {
            rds_settle_lost(conn, loss(conn), conn->ctx->errstr);
            *progress = true;
            break;
        }
        if (conn->last_read <= 0)
            break;
        *progress = true;
        bytes += (uint64_t)conn->last_read;
        if (!parse(conn, &count) || conn->ctx == NULL)
            break;
    }
    /* The rest of a large reply takes as long as this has. */
    if (worker != NULL && count == 0 && bytes >= RDS_LARGE / 2 && conn->readable)
        rt_worker_pass_lead(worker);
    if (bytes > 0) {
        uint64_t before = conn->quiet_since;

        conn->quiet_since = rt_now();
        if (rds_lease_is_held(conn->lease) && conn->ctx != NULL)
            rds_wire_heard(conn, conn->quiet_since - before);
        rt_count(&stats->bytes_in, bytes);
    }
    if (count > 0) {
        rt_count(&stats->batches, 1);
        rt_count(&stats->replies, count);
        renew_deadline(conn);
    }
    if (worker == NULL) {
        rt_count(&conn->channel->pool->loop_commands, count);
    } else if (count > 0) {
        rt_count_own(&worker->stats.batches, 1);
        rt_count_own(&worker->stats.commands, count);
        rds_loan_consider(conn, bytes, conn->quiet_since);
    }
    if (rds_lease_is_held(conn->lease))
        rds_held_tell(conn);
    rds_settle_flush(conn);
    return bytes;
}

bool rds_exchange_read(struct rds_conn *conn, struct rt_worker *worker)
{
    bool progress = false;

    /* Bounded, as a peer that talks without an end must not hold up deadlines
     * and the other connections of this worker. */
    (void)read_some(conn, worker, TURNS, &progress);
    return progress;
}

size_t rds_exchange_read_once(struct rds_conn *conn)
{
    bool progress = false;

    return read_some(conn, NULL, 1, &progress);
}
