#include "rds_conn.h"

#include <unistd.h>

#include "rds_cmd.h"
#include "rds_lease.h"

#define ROUNDS 64 /* of writing and reading in one look */

static void destroy(struct rt_source *src);

void rds_conn_init(struct rds_conn *conn, struct rds_channel *channel)
{
    conn->channel = channel;
    conn->fd = -1;
    atomic_init(&conn->sock, -1);
    conn->source.handle = rds_conn_handle;
    conn->source.destroy = destroy;
    conn->jitter = (unsigned)rt_now();
    rt_stack_init(&conn->inbox);
    rds_arena_init(&conn->scratch, NULL, 0); /* on the heap, while there is something */
}

int rds_conn_new(struct rds_channel *channel, struct rds_conn **out)
{
    struct rds_conn *conn = calloc(1, sizeof *conn);

    if (conn == NULL)
        return RT_ENOMEM;
    rds_conn_init(conn, channel);
    *out = conn;
    return RT_OK;
}

void rds_conn_free(struct rds_conn *conn)
{
    if (conn == NULL)
        return;
    rds_arena_free(&conn->scratch);
    free(conn);
}

/* The poller has let go of the source. */
static void destroy(struct rt_source *src)
{
    struct rds_conn *conn = RT_CONTAINER_OF(src, struct rds_conn, source);

    rds_channel_unref(conn->channel);
}

bool rds_conn_enter(struct rds_conn *conn, uint32_t note)
{
    if (note != 0)
        atomic_fetch_or(&conn->notes, note);
    return rds_owner_enter(&conn->owner);
}

bool rds_conn_leave(struct rds_conn *conn)
{
    return rds_owner_leave(&conn->owner);
}

/* ---- closing ------------------------------------------------------------ */

bool rds_conn_closing(const struct rds_conn *conn)
{
    return atomic_load(&conn->channel->closing) != 0 ||
           rt_pool_state(conn->channel->pool) >= RT_POOL_DRAINING;
}

static uint64_t close_at(const struct rds_conn *conn)
{
    uint64_t at = atomic_load(&conn->channel->close_at);
    uint64_t stop = atomic_load(&conn->channel->pool->stop_at);

    return at < stop ? at : stop;
}

static void shut(struct rds_conn *conn)
{
    static const char why[] = "The client was closed";

    rds_exchange_take(conn);
    rds_settle_all(conn, RT_ECLOSED, why);
    rds_connect_close(conn);
    rds_login_forget(conn);
    rds_conn_move(conn, RDS_CONN_CLOSED);
    rds_conn_refuse(conn);
    if (rds_conn_is_aside(conn))
        rt_source_attend(&conn->channel->conn->source, 0); /* it has waited for this */
    rds_channel_part_closed(conn->channel);
}

bool rds_conn_accept(struct rds_conn *conn, struct rt_job *job)
{
    atomic_fetch_add_explicit(&conn->submitted, 1, memory_order_relaxed);
    rt_stack_push(&conn->inbox, &job->node);
    /* Partner: the move to CLOSED in shut() and close_lease(), followed by a look at the
     * inbox: one of the two finds the job. */
    rt_fence();
    if (rds_conn_state(conn) != RDS_CONN_CLOSED)
        return true;
    rds_conn_refuse(conn);
    return false;
}

void rds_conn_refuse(struct rds_conn *conn)
{
    struct rt_node *node = rt_stack_take(&conn->inbox);

    while (node != NULL) {
        struct rt_job *base = RT_CONTAINER_OF(node, struct rt_job, node);

        node = node->next;
        rds_arena_set_text(&rds_job_of(base)->reply, RDS_ERROR,
                           "The client is closed: the command was not executed");
        rt_count(&conn->finished, 1); /* before it is home, as elsewhere */
        rt_pool_complete(base, RT_ECLOSED);
    }
}

/* Whether conn has something to do still, or may be brought something (rds_aside.h). */
static bool is_needed(struct rds_conn *conn)
{
    const struct rds_aside *aside = &conn->channel->aside;

    if (conn->pending.count + conn->inflight.count > conn->tombstones)
        return true;
    if (conn == conn->channel->conn && atomic_load(&aside->added) == 2 &&
        rds_conn_state(aside->conn) != RDS_CONN_CLOSED)
        return true;
    /* Last: whoever brought something has done so before he was CLOSED. */
    if (rt_stack_empty(&conn->inbox))
        return false;
    rt_source_attend(&conn->source, 0);
    return true;
}

static void close_when_done(struct rds_conn *conn, uint64_t now)
{
    uint64_t at = close_at(conn);

    if (now < at && is_needed(conn))
        rt_source_due(&conn->source, at);
    else
        shut(conn);
}

/* ---- the health check and disconnecting on request ---------------------- */

/* Idle for so long that a command must wait for a PING. */
static bool stale(const struct rds_conn *conn, uint64_t now)
{
    uint64_t interval = conn->channel->options.health_interval;

    return interval != 0 && conn->inflight.head == NULL && conn->head_sent == 0 &&
           now >= rt_after(conn->quiet_since, interval);
}

static bool health_is_due(const struct rds_conn *conn)
{
    return conn->pinging ||
           (conn->channel->options.health_interval != 0 && stale(conn, rt_now()));
}

static void check_health(struct rds_conn *conn, uint64_t now)
{
    static const char ping[] = "*1\r\n$4\r\nPING\r\n";

    if (conn->pinging) {
        if (now >= conn->connect_by)
            rds_settle_lost(conn, RT_ELOST, "the health check was not answered");
        else
            rt_source_due(&conn->source, conn->connect_by);
        return;
    }
    if (conn->pending.head == NULL || !stale(conn, now))
        return;
    if (redisAppendFormattedCommand(conn->ctx, ping, sizeof ping - 1) != REDIS_OK)
        return;
    conn->appended += sizeof ping - 1;
    conn->pinging = true;
    conn->connect_by = rt_after(now, conn->channel->options.connect_timeout);
    rt_source_due(&conn->source, conn->connect_by);
}

static void disconnect_when_quiet(struct rds_conn *conn)
{
    if (!rds_conn_leaving(conn))
        return;
    if (conn->ctx != NULL && (conn->inflight.head != NULL || conn->head_sent > 0))
        return;
    atomic_store(&conn->disconnect, 0);
    /* On the way there it is what commands wait for, but for the one aside. */
    if (rds_conn_state(conn) != RDS_CONN_READY &&
        (!rds_conn_is_aside(conn) || rds_conn_state(conn) == RDS_CONN_IDLE))
        return;
    rds_connect_close(conn);
    rds_login_forget(conn);
    rds_conn_move(conn, RDS_CONN_IDLE);
}

/* ---- what is held ------------------------------------------------------- */

/* Whether what is in the inbox is about to be kicked: a worker that took it at once,
 * a few commands each time, would spend itself on writing.  Held for too long it is
 * sent nevertheless: its task may be busy with something else. */
static bool held_back(struct rds_conn *conn, uint64_t now)
{
    uint64_t since = atomic_load(&conn->channel->held_since);

    if (since == 0 || conn != conn->channel->conn || rds_conn_state(conn) != RDS_CONN_READY ||
        now >= rt_after(since, RDS_HOLD))
        return false;
    rt_source_due(&conn->source, rt_after(since, RDS_HOLD));
    return true;
}

/* ---- one look ----------------------------------------------------------- */

static void look(struct rds_conn *conn, uint32_t what, struct rt_worker *worker)
{
    uint64_t now = rt_now();
    unsigned rounds = 0;
    bool progress, wanted;

    conn->readable |= (what & RT_READABLE) != 0;
    conn->hung_up |= (what & RT_HANGUP) != 0;
    do {
        progress = false;
        if (!held_back(conn, now))
            rds_exchange_take(conn);
        disconnect_when_quiet(conn);
        rds_aside_bring_back(conn);
        switch (rds_conn_state(conn)) {
        case RDS_CONN_IDLE:
            wanted = atomic_exchange(&conn->wanted, 0) != 0 || conn->pending.head != NULL;
            if (wanted && !(rds_conn_closing(conn) && now >= close_at(conn)))
                rds_connect_begin(conn,
                                  conn->pending.head != NULL ? conn->pending.head->mailbox : NULL,
                                  now);
            break;
        case RDS_CONN_HANDSHAKE:
        case RDS_CONN_READY:
            if (rds_conn_state(conn) == RDS_CONN_READY)
                check_health(conn, now);
            if (conn->ctx != NULL)
                progress |= rds_exchange_write(conn);
            if (conn->ctx != NULL)
                progress |= rds_exchange_read(conn, worker);
            break;
        default:
            break;
        }
        if (rds_conn_state(conn) != RDS_CONN_READY) {
            rds_connect_step(conn, what, now, worker);
            /* Without a handshake it may be ready at once. */
            progress |= rds_conn_state(conn) == RDS_CONN_READY;
        }
        rds_aside_bring_back(conn);
        progress |= rds_conn_state(conn) == RDS_CONN_IDLE && conn->pending.head != NULL;
        what = 0;
    } while (progress && ++rounds < ROUNDS);
    if (progress)
        rt_source_attend(&conn->source, 0); /* others have their turn first */
    rds_settle_flush(conn);
}

void rds_conn_handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct rds_conn *conn = RT_CONTAINER_OF(src, struct rds_conn, source);

    if (!rds_conn_enter(conn, what))
        return;
    do {
        what = atomic_exchange(&conn->notes, 0);
        if (rds_conn_state(conn) != RDS_CONN_CLOSED) {
            if (what & RT_DUE)
                rds_loan_tick(conn, rt_now());
            rds_loan_look(conn);
            look(conn, what, worker);
            if (what & RT_DUE)
                rds_settle_expired(conn, rt_now());
            if (conn->lease != NULL) {
                rds_lease_look(conn->lease);
            } else if (rds_conn_closing(conn)) {
                if (conn->loan != NULL)
                    rds_loan_recall(conn); /* the last reply is to be seen by a worker */
                close_when_done(conn, rt_now());
            }
        }
        if (rds_conn_state(conn) == RDS_CONN_CLOSED && rt_source_retire(&conn->source))
            return; /* held for good, and nothing of it may be touched any more */
        if (rds_conn_state(conn) == RDS_CONN_IDLE && conn->pending.head != NULL)
            rt_source_attend(&conn->source, 0);
    } while (!rds_conn_leave(conn));
}

void rds_conn_write_through(struct rds_conn *conn)
{
    bool handed_over = false;

    if (!rds_conn_enter(conn, 0))
        return; /* the holder takes it */
    rds_exchange_take(conn);
    if (rds_conn_state(conn) == RDS_CONN_READY && conn->ctx != NULL && !health_is_due(conn)) {
        (void)rds_exchange_write(conn);
        rt_count(&conn->channel->stats.inline_sends, 1);
    }
    rds_settle_flush(conn);
    if (rds_conn_state(conn) != RDS_CONN_READY || conn->pending.head != NULL ||
        rds_conn_closing(conn))
        handed_over = true;
    if (conn->lease != NULL && conn->inflight.head == NULL)
        handed_over = true; /* it was cancelled: the lease is to be closed */
    while (!rds_conn_leave(conn))
        handed_over = true; /* a note: it is the worker's, who is not in a hurry */
    if (handed_over)
        rt_source_attend(&conn->source, 0);
}
