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
#include <errno.h>
#include <stdarg.h>
#include <sys/socket.h>

#include "rds_conn.h"
#include "rds_lease.h"
#include "rds_pipeline.h"

#ifndef RDS_MUTANT_MATCH
#define RDS_MUTANT_MATCH 0 /* 1: a planted bug, see match() */
#endif

#define OUT_CHUNK ((size_t)64 << 10)  /* bytes kept in hiredis's output buffer */
#define TURNS 16                      /* writes, and reads, before others have theirs */
#define HOME_CHUNK 64                 /* jobs posted at once */
#define SILENCE (1 * RT_SEC)          /* no byte for so long: the peer is gone */
#define MAX_LINE ((size_t)1 << 20)   /* bytes of a line: a length, a status, an error */
#define SANE_LENGTH (UINT64_C(1) << 40)

/* ---- going home --------------------------------------------------------- */

void rds_exchange_flush(struct rds_conn *conn)
{
    if (conn->home.head == NULL)
        return;
    /* Before its caller knows: the next call must find the lease given back. */
    if (conn->lease != NULL)
        rds_lease_finished(conn->lease);
    rt_mailbox_post(conn->home.head->mailbox, &conn->home);
}

static void send_home(struct rds_conn *conn, struct rds_job *job, int err)
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
        rds_exchange_flush(conn);
    rt_joblist_append(&conn->home, &job->base);
    /* Ordered before the next look at the inbox: rds_channel_alone(). */
    atomic_store(&conn->finished, rt_read(&conn->finished) + 1);
}

/* Fail one job with a text that says to which endpoint and what may have run. */
static void fail_job(struct rds_conn *conn, struct rds_job *job, int err, bool maybe_run,
                     const char *text)
{
    char of_pipeline[360];

    if (!job->tombstone) {
        job->maybe_run = maybe_run;
        if (job->pipeline != NULL)
            text = rds_pipeline_say(of_pipeline, sizeof of_pipeline, text);
        rds_arena_set_text(&job->reply, RDS_ERROR, text);
    }
    send_home(conn, job, err);
}

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

/* The held part of the lease that conn is of, if it is held. */
static bool is_held(const struct rds_conn *conn)
{
    return conn->lease != NULL &&
           atomic_load_explicit(&conn->lease->held.on, memory_order_relaxed);
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
                send_home(conn, job, RT_ECANCELLED);
                continue;
            }
            job->start = conn->appended;
            job->end = job->start + job->request_len;
            if (job->holds) {
                rt_joblist_pop(&conn->pending);
                rds_held_begin(conn);
                send_home(conn, job, RT_OK);
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
            !(is_held(conn) ? rds_held_append(conn, OUT_CHUNK) : append(conn, leaving))) {
            rds_exchange_lost(conn, RT_ENOMEM, "no memory for the output buffer");
            return true;
        }
        if (sdslen(c->obuf) == 0)
            break;
        before = conn->appended - sdslen(c->obuf);
        if (redisBufferWrite(c, &done) != REDIS_OK) {
            rds_exchange_lost(conn, RT_ELOST, c->errstr);
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
    if (is_held(conn))
        rds_held_sent(conn);
    if (!done != conn->watch_write) {
        conn->watch_write = !done;
        if (conn->loan != NULL)
            rds_loan_recall(conn);
        else if (rt_source_watch(&conn->source, c->fd, conn->watch_write, true) != RT_OK) {
            rds_exchange_lost(conn, RT_ESYS, "epoll refused the socket");
            return true;
        }
    }
    return progress;
}

/* ---- reading and matching ----------------------------------------------- */

static ssize_t read_socket(redisContext *c, char *buf, size_t cap)
{
    struct rds_conn *conn = c->privdata;
    ssize_t n;

    do {
        n = recv(c->fd, buf, cap, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    conn->last_read = n;
    if (n > 0) {
        /* Fewer bytes than asked for: the socket is drained, and whatever comes
         * later is a new edge.  Not so once the peer has closed: its end of file
         * may have come with the edge that brought these bytes. */
        if ((size_t)n < cap && !conn->hung_up)
            conn->readable = false;
        return n;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        conn->last_read = 0;
        conn->readable = conn->hung_up = false;
        return 0;
    }
    c->err = n == 0 ? REDIS_ERR_EOF : REDIS_ERR_IO;
    snprintf(c->errstr, sizeof c->errstr, "%s",
             n == 0 ? "the server closed the connection" : strerror(errno));
    return -1;
}

/* The same from a stream of TLS, whose records may be here before they are asked for. */
static ssize_t read_stream(redisContext *c, char *buf, size_t cap)
{
    struct rds_conn *conn = c->privdata;
    struct rds_stream *stream = conn->stream;
    ssize_t n = rds_stream_read(stream, buf, cap);

    conn->last_read = n;
    if (stream->write_again || stream->unsent != NULL) {
        stream->write_again = false;
        rt_source_attend(&conn->source, 0); /* a look writes, or asks for room */
    }
    if (n > 0) {
        if (stream->drained && !conn->hung_up)
            conn->readable = false;
    } else if (n == 0) {
        conn->readable = conn->hung_up = false;
    } else {
        c->err = stream->ended ? REDIS_ERR_EOF : REDIS_ERR_IO;
        snprintf(c->errstr, sizeof c->errstr, "%.127s", stream->why);
    }
    return n;
}

static ssize_t write_stream(redisContext *c)
{
    struct rds_conn *conn = c->privdata;
    struct rds_stream *stream = conn->stream;
    ssize_t n = rds_stream_write(stream, c->obuf, sdslen(c->obuf));

    if (n < 0) {
        c->err = REDIS_ERR_IO;
        snprintf(c->errstr, sizeof c->errstr, "%.127s", stream->why);
    }
    conn->readable |= stream->writer_reads;
    if (stream->gone) {
        conn->hung_up = true;
        rt_source_attend(&conn->source, RT_READABLE); /* a read ends it */
    }
    return n;
}

bool rds_exchange_buffered(const struct rds_conn *conn)
{
    return conn->stream != NULL && rds_stream_buffered(conn->stream);
}

static ssize_t write_socket(redisContext *c)
{
    struct rds_conn *conn = c->privdata;
    ssize_t n;

    do {
        /* A closed peer must not raise SIGPIPE in whoever writes through. */
        n = send(c->fd, c->obuf, sdslen(c->obuf), MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return 0;
    if (rds_conn_state(conn) == RDS_CONN_HANDSHAKE && (errno == EPIPE || errno == ECONNRESET)) {
        /* A server that is full says so and closes: let it be read why. */
        conn->readable = conn->hung_up = true;
        return 0;
    }
    c->err = REDIS_ERR_IO;
    snprintf(c->errstr, sizeof c->errstr, "%s", strerror(errno));
    return -1;
}

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
    if (is_held(conn)) {
        if (!rds_held_receive(conn, into))
            conn->builder.bad = "no memory for a reply";
        return conn->builder.bad == NULL;
    }
    job = answered_next(conn);
    if (job == NULL || !is_out(conn, job))
        return false;
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

    conn->funcs = *c->funcs;
    conn->funcs.read = conn->stream != NULL ? read_stream : read_socket;
    conn->funcs.write = conn->stream != NULL ? write_stream : write_socket;
    c->funcs = &conn->funcs;
    c->privdata = conn;
    c->reader->fn = &rds_reply_functions;
    c->reader->privdata = &conn->builder;
    c->reader->maxbuf = (size_t)1 << 20;
    memset(&conn->builder, 0, sizeof conn->builder);
    conn->builder.begin = begin_reply;
    conn->builder.owner = conn;
    conn->builder.max_bytes = conn->channel->options.max_reply;
    conn->appended = conn->written = conn->skip = 0;
    conn->readable = conn->hung_up = conn->pinging = conn->watch_write = false;
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
        rds_connect_reply(conn);
        return conn->ctx != NULL;
    }
    if (is_held(conn)) {
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
    if (job->tombstone || rt_job_state(&job->base) != RT_JOB_RUNNING)
        rt_count(&stats->dropped, 1);
    if (too_big) {
        char text[160];

        say_too_big(conn, text, sizeof text);
        fail_job(conn, job, RT_ETOOBIG, true, text);
    } else {
        send_home(conn, job, RT_OK);
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
            rds_exchange_lost(conn, RT_EPROTOCOL, why);
            return false;
        }
        if (reply != NULL) {
            if (!match(conn, count))
                return false;
            continue;
        }
        if (!skip_long_string(conn)) {
            rds_exchange_lost(conn, RT_EPROTOCOL, "a string of an impossible length");
            return false;
        }
        if (endless_line(r)) {
            rds_exchange_lost(conn, RT_EPROTOCOL, "a line without an end");
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

        if (is_held(conn) && rds_held_is_full(conn))
            break;
        status = conn->skip > 0 ? drop_bytes(conn) : redisBufferRead(conn->ctx);

        if (status != REDIS_OK) {
            rds_exchange_lost(conn, loss(conn), conn->ctx->errstr);
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
    if (bytes > 0) {
        conn->quiet_since = rt_now();
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
    if (is_held(conn))
        rds_held_tell(conn);
    rds_exchange_flush(conn);
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

/* ---- failing ------------------------------------------------------------ */

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
                send_home(conn, job, RT_ECANCELLED);
            }
        } else {
            fail_job(conn, job, err, maybe_seen(conn, job), text);
        }
    }
    rt_joblist_prepend_all(&conn->pending, &back);
}

void rds_exchange_lost(struct rds_conn *conn, int err, const char *why)
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
    rds_exchange_flush(conn);
    if (is_held(conn)) {
        snprintf(text, sizeof text, "Connection to %.120s lost: %s",
                 rds_channel_endpoint(conn->channel), reason);
        rds_held_end(conn, err, text);
    }
    rt_count(&conn->channel->stats.retained, conn->pending.count);
    if (had_commands)
        rt_count(&conn->channel->stats.losses, 1);
    rds_connect_close(conn);
    rds_conn_move(conn, RDS_CONN_IDLE);
}

void rds_exchange_fail_pending(struct rds_conn *conn, int err, const char *text)
{
    struct rt_job *base;

    while ((base = rt_joblist_pop(&conn->pending)) != NULL)
        fail_job(conn, rds_job_of(base), err, false, text);
    rds_exchange_flush(conn);
}

void rds_exchange_fail_all(struct rds_conn *conn, int err, const char *what)
{
    char text[320];

    describe(text, sizeof text, conn, what, true);
    settle_inflight(conn, err, text, true);
    describe(text, sizeof text, conn, what, false);
    rds_exchange_fail_pending(conn, err, text);
}

/* ---- deadlines ---------------------------------------------------------- */

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
        fail_job(conn, rds_job_of(base), RT_ETIMEOUT, false, text);
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
        fail_job(conn, job, RT_ETIMEOUT, true, text);
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
    fail_job(conn, job, RT_ETIMEOUT, seen, text);
    rds_exchange_lost(conn, RT_ETIMEOUT, "the server stopped reading");
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

void rds_exchange_expire(struct rds_conn *conn, uint64_t now)
{
    uint64_t next;

    if (expire_head(conn, now))
        rds_exchange_flush(conn);
    next = expire_pending(conn, now, RT_NEVER);
    next = expire_inflight(conn, now, next);
    rds_exchange_flush(conn);
    if (stuck_in_reply(conn)) {
        rds_exchange_lost(conn, RT_ETIMEOUT, "only a part of an overdue reply came");
        return;
    }
    if (conn->tombstones > 0 && rds_conn_state(conn) == RDS_CONN_READY) {
        /* Replies are overdue.  A peer that sends nothing at all is gone. */
        uint64_t gone = rt_after(conn->quiet_since, SILENCE);

        if (gone <= now) {
            rds_exchange_lost(conn, RT_ETIMEOUT, "nothing came, not even an overdue reply");
            return;
        }
        if (gone < next)
            next = gone;
    }
    if (is_held(conn)) {
        uint64_t waits = rds_held_expire(conn, now);

        if (waits < next)
            next = waits;
    }
    rt_source_due(&conn->source, next);
}
