/* A lease: a connection and whether it is free, taken or at its end. */
#include "rds_lease.h"

#include <hiredis/sds.h>

#define SMALL_BUFFER ((size_t)1 << 10) /* what an idle reader may keep */
#define ADDRESS_FOR RT_SEC             /* so long a lookup serves others */

static void destroy(struct rt_source *src)
{
    struct rds_lease *lease = RT_CONTAINER_OF(src, struct rds_lease, conn.source);
    struct rds_channel *channel = lease->conn.channel;

    rds_lease_unref(lease);
    rds_channel_unref(channel);
}

int rds_lease_new(struct rds_lessor *lessor, struct rds_lease **out)
{
    struct rds_channel *channel = lessor->channel;
    struct rds_lease *lease = calloc(1, sizeof *lease);
    int err;

    if (lease == NULL)
        return RT_ENOMEM;
    rds_conn_init(&lease->conn, channel);
    lease->conn.lease = lease;
    lease->conn.source.destroy = destroy;
    lease->lessor = lessor;
    rds_held_init(&lease->held);
    atomic_init(&lease->refs, 2); /* the lessor's and the poller's */
    atomic_init(&lease->state, RDS_LEASE_TAKEN);
    rds_channel_ref(channel);
    rds_channel_part_opens(channel);
    err = rt_pool_add_source(channel->pool, &lease->conn.source);
    if (err != RT_OK) {
        rds_channel_part_closed(channel);
        rds_channel_unref(channel);
        free(lease);
        return err;
    }
    *out = lease;
    return RT_OK;
}

void rds_lease_ref(struct rds_lease *lease)
{
    atomic_fetch_add_explicit(&lease->refs, 1, memory_order_relaxed);
}

void rds_lease_unref(struct rds_lease *lease)
{
    /* Partner: the same line in another thread; the last one frees. */
    if (atomic_fetch_sub_explicit(&lease->refs, 1, memory_order_acq_rel) != 1)
        return;
    rds_held_fini(&lease->held);
    rds_arena_free(&lease->conn.scratch);
    free(lease);
}

void rds_lease_report(struct rds_lease *lease)
{
    /* Partner: the store before the look in take_reports(). */
    if (atomic_exchange(&lease->reported, 1) == 0)
        rt_stack_push(&lease->lessor->reports, &lease->report);
}

void rds_lease_let_die(struct rds_lease *lease)
{
    uint32_t was;

    atomic_fetch_add(&lease->lessor->dying, 1);
    was = atomic_exchange(&lease->state, RDS_LEASE_DEAD);
    if (was == RDS_LEASE_DEAD)
        atomic_fetch_sub(&lease->lessor->dying, 1);
    if (was == RDS_LEASE_SPARE)
        atomic_fetch_sub(&lease->lessor->spares, 1);
    rds_lease_report(lease);
}

void rds_lease_kill(struct rds_lease *lease)
{
    rds_lease_let_die(lease);
    rt_source_attend(&lease->conn.source, 0);
}

void rds_lease_sending(struct rds_lease *lease, struct rds_job *job)
{
    uint64_t grain = job->patience / 64, until;

    if (job->patience == RT_NEVER)
        return;
    /* Thousands of commands that wait each a little longer than the one before
     * would have the poller look at all sources for each. */
    if (grain > 20 * RT_MS)
        grain = 20 * RT_MS;
    until = rt_after(rt_now(), job->patience);
    if (grain > 0 && until < RT_NEVER - grain)
        until += grain - until % grain;
    job->base.deadline = until;
    rt_source_due(&lease->conn.source, until);
}

void rds_lease_shrink(struct rds_conn *conn, size_t keep)
{
    redisReader *r = conn->ctx->reader;
    sds small;

    if (r->pos != r->len)
        return;
    if (sdsalloc(r->buf) <= keep) {
        sdsclear(r->buf); /* or hiredis fills it up to 1 KB first, and it grows */
        r->pos = r->len = 0;
        return;
    }
    small = sdsempty();
    if (small == NULL)
        return;
    sdsfree(r->buf);
    r->buf = small;
    r->pos = r->len = 0;
}

void rds_lease_finished(struct rds_lease *lease)
{
    struct rds_conn *conn = &lease->conn;
    bool clean = rds_conn_state(conn) == RDS_CONN_READY && !conn->spoiled &&
                 conn->inflight.head == NULL && conn->pending.head == NULL && !conn->hung_up;

    if (atomic_load(&lease->held.on) && !conn->spoiled)
        return; /* it was given for good */
    if (clean)
        rds_lease_shrink(conn, SMALL_BUFFER);
    if (clean ? rds_lease_move(lease, RDS_LEASE_TAKEN, RDS_LEASE_IDLE)
              : rds_lease_end(lease, RDS_LEASE_TAKEN))
        rds_lease_report(lease);
}

/* Close it for good; its command, if there is one, fails. */
static void close_lease(struct rds_lease *lease, int err, const char *why)
{
    struct rds_conn *conn = &lease->conn;

    rds_lease_let_die(lease);
    rds_exchange_take(conn);
    rds_settle_all(conn, err, why);
    if (atomic_load(&lease->held.on))
        rds_held_end(conn, err, why);
    rds_connect_close(conn);
    rds_login_forget(conn);
    rds_conn_move(conn, RDS_CONN_CLOSED);
    rds_conn_refuse(conn);
    rds_channel_part_closed(conn->channel);
}

/* Whether nobody waits any more for what it is doing. */
static bool unwanted(const struct rds_conn *conn)
{
    const struct rt_job *base = conn->inflight.head != NULL ? conn->inflight.head
                                                            : conn->pending.head;

    if (conn->spoiled || conn->tombstones > 0)
        return true;
    return base != NULL && (rt_job_state(base) == RT_JOB_CANCELLED ||
                            rt_job_state(base) == RT_JOB_ABANDONED);
}

/* Whether it has no socket and no command that would open one. */
static bool lifeless(const struct rds_conn *conn)
{
    return rds_conn_state(conn) == RDS_CONN_IDLE && conn->pending.head == NULL;
}

/* Whether its first try to connect is over. */
static bool has_dialed(const struct rds_conn *conn)
{
    return rds_conn_state(conn) == RDS_CONN_READY || rds_conn_state(conn) == RDS_CONN_CLOSED ||
           conn->failures > 0;
}

void rds_lease_look(struct rds_lease *lease)
{
    struct rds_conn *conn = &lease->conn;

    if (rds_conn_state(conn) == RDS_CONN_CLOSED)
        return;
    if (rds_conn_closing(conn))
        close_lease(lease, RT_ECLOSED, "The client was closed");
    else if (atomic_load(&lease->state) == RDS_LEASE_DEAD || unwanted(conn))
        close_lease(lease, RT_ELOST, "The connection was closed");
    else if (lifeless(conn) && rds_lease_end(lease, RDS_LEASE_IDLE))
        close_lease(lease, RT_ELOST, "The connection was closed"); /* by the server, idle */
    else if (lifeless(conn) && atomic_load(&lease->held.on))
        close_lease(lease, RT_ELOST, "The connection was closed"); /* it is not made anew */
    if (has_dialed(conn) && atomic_exchange(&lease->dialed, 1) == 0)
        rds_lease_report(lease);
    rds_lease_was_read(lease);
}

void rds_lease_was_read(struct rds_lease *lease)
{
    if (atomic_load(&lease->reported) != 0)
        rds_lessor_serve(lease->lessor);
}

/* ---- addresses ---------------------------------------------------------- */

/* The last lookup, with a reference of the caller's; NULL when it is too old, or
 * somebody else is looking at it. */
static struct rds_resolve *borrow(struct rds_lessor *lessor, uint64_t now)
{
    struct rds_resolve *found;

    if (!lessor->by_name || now >= atomic_load(&lessor->address_until))
        return NULL;
    found = atomic_exchange(&lessor->address, NULL);
    if (found == NULL)
        return NULL;
    atomic_fetch_add(&found->refs, 1);
    rds_resolve_release(atomic_exchange(&lessor->address, found));
    return found;
}

bool rds_lease_known_address(struct rds_lease *lease, uint64_t now)
{
    /* After a failure the name is asked for again: it may have moved. */
    if (lease->conn.failures == 0)
        lease->conn.resolve = borrow(lease->lessor, now);
    return lease->conn.resolve != NULL;
}

void rds_lease_looked_up(struct rds_lease *lease)
{
    struct rds_lessor *lessor = lease->lessor;
    struct rds_resolve *resolve = lease->conn.resolve;
    uint64_t now = rt_now();

    if (!lessor->by_name || resolve->gai_error != 0 || now < atomic_load(&lessor->address_until))
        return;
    atomic_fetch_add(&resolve->refs, 1);
    rds_resolve_release(atomic_exchange(&lessor->address, resolve));
    atomic_store(&lessor->address_until, rt_after(now, ADDRESS_FOR));
    rt_source_due(&lessor->source, rt_after(now, ADDRESS_FOR)); /* to let go of it */
    rt_source_attend(&lessor->source, 0); /* others have waited for it */
}
