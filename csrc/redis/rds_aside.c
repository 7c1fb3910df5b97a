#include "rds_aside.h"

#include "rds_conn.h"

#define LONG 1024             /* bytes of a command that is not remembered any more */
#define PATIENCE (1 * RT_SEC) /* between two tries to connect */
#define UNUSED (60 * RT_SEC)  /* so long, and it is not relied on any more */

uint32_t rds_aside_mark(const struct rds_job *job)
{
    const uint64_t prime = UINT64_C(0x9e3779b97f4a7c15);
    size_t left = job->request_len, n;
    const char *p = job->request;
    uint64_t h = left * prime, word;

    if (!job->reads || job->pipeline != NULL || left > LONG)
        return 0;
    for (; left > 0; left -= n, p += n) {
        n = left < sizeof word ? left : sizeof word;
        word = 0;
        memcpy(&word, p, n);
        h = (h ^ word) * prime;
        h ^= h >> 32;
    }
    return (uint32_t)h | 1;
}

static _Atomic uint32_t *slot_of(struct rds_aside *aside, uint32_t mark)
{
    return &aside->marks[(mark >> 1) % RDS_ASIDE_SLOTS];
}

/* Have the connection opened. */
static void dial(struct rds_channel *channel, struct rt_mailbox *mailbox)
{
    struct rds_aside *aside = &channel->aside;
    struct rds_conn *conn = aside->conn;
    uint64_t now = rt_now();

    if (rds_conn_state(conn) != RDS_CONN_IDLE || now < atomic_load(&aside->dial_at) ||
        rds_channel_add_part(channel, &aside->added, &conn->source) != RT_OK)
        return;
    atomic_store(&aside->dial_at, rt_after(now, PATIENCE));
    atomic_store(&aside->used_at, now);
    if (!channel->options.ask_credentials) {
        atomic_store(&conn->wanted, 1); /* a worker's */
    } else if (rds_conn_enter(conn, 0)) {
        /* Here and now: that the mailbox lives when a worker looks is not certain. */
        if (rds_conn_state(conn) == RDS_CONN_IDLE)
            rds_connect_begin(conn, mailbox, now);
        while (!rds_conn_leave(conn)) {
        }
    }
    rt_source_attend(&conn->source, 0);
}

struct rds_conn *rds_aside_conn(struct rds_channel *channel, struct rds_job *job)
{
    struct rds_aside *aside = &channel->aside;
    uint64_t now;

    if (atomic_load_explicit(&aside->known, memory_order_relaxed) == 0)
        return NULL;
    job->mark = rds_aside_mark(job);
    if (job->mark == 0 ||
        atomic_load_explicit(slot_of(aside, job->mark), memory_order_relaxed) != job->mark)
        return NULL;
    if (rds_conn_state(aside->conn) != RDS_CONN_READY || rds_conn_leaving(aside->conn)) {
        dial(channel, job->base.mailbox);
        return NULL;
    }
    now = rt_now();
    if (now > rt_after(atomic_exchange(&aside->used_at, now), UNUSED)) {
        rds_aside_disconnect(channel);
        return NULL;
    }
    atomic_fetch_add_explicit(&aside->commands, 1, memory_order_relaxed);
    return aside->conn;
}

void rds_aside_bring_back(struct rds_conn *conn)
{
    struct rds_conn *shared = conn->channel->conn;
    struct rt_job *base;

    if (!rds_conn_is_aside(conn) || conn->pending.head == NULL ||
        rds_conn_state(conn) == RDS_CONN_READY)
        return;
    while ((base = rt_joblist_pop(&conn->pending)) != NULL) {
        atomic_fetch_sub(&conn->submitted, 1); /* to be counted there */
        rds_conn_accept(shared, base);
    }
    rt_source_attend(&shared->source, 0);
}

void rds_aside_disconnect(struct rds_channel *channel)
{
    struct rds_conn *conn = channel->aside.conn;

    if (atomic_load_explicit(&channel->aside.added, memory_order_acquire) != 2)
        return;
    atomic_store(&conn->wanted, 0);
    if (rds_conn_state(conn) == RDS_CONN_IDLE || rds_conn_state(conn) == RDS_CONN_CLOSED)
        return;
    atomic_store(&conn->disconnect, 1);
    rt_source_attend(&conn->source, 0);
}

void rds_aside_heard(struct rds_conn *conn, const struct rds_job *job, uint64_t bytes)
{
    struct rds_aside *aside = &conn->channel->aside;
    uint32_t mark = job->mark;

    if (bytes >= RDS_LARGE) {
        atomic_store_explicit(slot_of(aside, mark), mark, memory_order_relaxed);
        atomic_store_explicit(&aside->known, 1, memory_order_relaxed);
    } else if (conn == aside->conn && bytes < RDS_LARGE / 2) {
        (void)atomic_compare_exchange_strong(slot_of(aside, mark), &mark, 0);
    }
}
