/* What a holder writes, what he is sent, and how he is told. */
#include "rds_held.h"

#include <hiredis/sds.h>

#include "rds_lease.h"

#define SMALL_BUFFER ((size_t)384) /* what the reader of each of thousands may keep */

static struct rds_held *held_of(const struct rds_conn *conn)
{
    return &conn->lease->held;
}

void rds_held_init(struct rds_held *held)
{
    rt_stack_init(&held->received);
    rt_stack_init(&held->outbox);
    atomic_init(&held->read_by, RT_NEVER);
    atomic_init(&held->write_by, RT_NEVER);
}

static void free_chunks(struct rt_node *node)
{
    while (node != NULL) {
        struct rds_chunk *chunk = RT_CONTAINER_OF(node, struct rds_chunk, node);

        node = node->next;
        free(chunk);
    }
}

static void free_received(struct rt_node *node)
{
    while (node != NULL) {
        struct rds_received *received = RT_CONTAINER_OF(node, struct rds_received, node);

        node = node->next;
        rds_received_free(received);
    }
}

void rds_held_fini(struct rds_held *held)
{
    free_chunks(held->chunks);
    free_chunks(rt_stack_take(&held->outbox));
    free_received(held->taken);
    free_received(rt_stack_take(&held->received));
    rds_received_free(held->coming);
}

/* Send home who waits in slot, if anybody does. */
static void wake(struct rt_job *_Atomic *slot, int err)
{
    /* Partner: the same exchange in another thread; one of them has the job. */
    struct rt_job *job = atomic_exchange(slot, NULL);

    if (job != NULL)
        rt_pool_complete(job, err);
}

/* ---- for the holder ------------------------------------------------------ */

struct rds_lease *rds_held_claim(struct rds_job *job)
{
    job->holds = false; /* what is not claimed is closed by rds_job_fini() */
    return atomic_exchange(&job->lease, NULL);
}

struct rds_chunk *rds_chunk_new(size_t len)
{
    struct rds_chunk *chunk = malloc(sizeof *chunk + len);

    if (chunk != NULL)
        chunk->len = len;
    return chunk;
}

/* Do something with the connection from the holder's thread, if nobody else does: then
 * true. */
static bool attempt(struct rds_conn *conn, bool reads)
{
    bool handed_over = false;

    if (!rds_conn_enter(conn, 0))
        return false; /* who holds it goes round once more */
    if (rds_conn_state(conn) == RDS_CONN_READY && conn->ctx != NULL) {
        (void)rds_exchange_write(conn);
        if (reads && conn->ctx != NULL) {
            conn->readable = true;
            (void)rds_exchange_read_once(conn);
            rt_count(&conn->channel->stats.inline_reads, 1);
        } else {
            rt_count(&conn->channel->stats.inline_sends, 1);
        }
    }
    rds_settle_flush(conn);
    handed_over = rds_conn_state(conn) != RDS_CONN_READY || rds_conn_closing(conn) ||
                  conn->readable || held_of(conn)->chunks != NULL;
    while (!rds_conn_leave(conn))
        handed_over = true; /* a note: it is a worker's */
    if (handed_over)
        rt_source_attend(&conn->source, 0);
    return true;
}

int rds_held_write(struct rds_lease *lease, struct rds_chunk *chunk, bool *tried)
{
    struct rds_held *held = &lease->held;

    if (atomic_load(&held->lost) != RT_OK) {
        free(chunk);
        return RT_ELOST;
    }
    atomic_fetch_add(&held->given, chunk->len);
    rt_stack_push(&held->outbox, &chunk->node); /* if it is lost just now: freed with the lease */
    *tried = attempt(&lease->conn, false);
    return RT_OK;
}

uint64_t rds_held_unsent(const struct rds_lease *lease)
{
    /* In this order, or a chunk that is handed in between seems sent. */
    uint64_t gone = atomic_load(&lease->held.gone);

    return atomic_load(&lease->held.given) - gone;
}

void rds_received_free(struct rds_received *received)
{
    if (received == NULL)
        return;
    rds_arena_free(&received->arena);
    free(received);
}

struct rds_received *rds_held_take(struct rds_lease *lease)
{
    struct rds_held *held = &lease->held;
    struct rds_received *received;
    uint64_t bytes, count;

    if (held->taken == NULL)
        held->taken = rt_stack_take(&held->received);
    if (held->taken == NULL)
        return NULL;
    received = RT_CONTAINER_OF(held->taken, struct rds_received, node);
    held->taken = held->taken->next;
    bytes = atomic_fetch_sub(&held->bytes, received->arena.len) - received->arena.len;
    count = atomic_fetch_sub(&held->count, 1) - 1;
    /* Partner: the store in rds_held_is_full(), after which it looks again. */
    if (atomic_load(&held->stopped) && count <= RDS_HELD_MOST / 2 && bytes <= RDS_HELD_BYTES / 2 &&
        atomic_exchange(&held->stopped, false))
        rt_source_attend(&lease->conn.source, RT_READABLE);
    return received;
}

void rds_held_poll(struct rds_lease *lease)
{
    if (!rds_held_ready(lease))
        (void)attempt(&lease->conn, true);
}

bool rds_held_ready(const struct rds_lease *lease)
{
    return lease->held.taken != NULL || !rt_stack_empty(&lease->held.received) ||
           atomic_load(&lease->held.lost) != RT_OK;
}

static void wait(struct rds_lease *lease, struct rt_job *job, struct rt_job *_Atomic *slot,
                 _Atomic uint64_t *by)
{
    uint64_t deadline = job->deadline;

    RT_CHECK(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
    atomic_store(by, deadline);
    RT_CHECK(atomic_exchange(slot, job) == NULL);
    if (deadline != RT_NEVER)
        rt_source_due(&lease->conn.source, deadline);
    rt_fence(); /* Partners: rds_held_tell(), rds_held_sent(), rds_held_end(). */
}

void rds_held_wait(struct rds_lease *lease, struct rt_job *job)
{
    struct rds_held *held = &lease->held;

    const struct rt_mailbox *mailbox = job->mailbox, *lent_to;

    wait(lease, job, &held->reader, &held->read_by);
    if (rds_held_ready(lease)) {
        wake(&held->reader, RT_OK);
        return;
    }
    lent_to = atomic_load(&held->lent_to);
    if (lent_to != NULL && lent_to != mailbox) {
        atomic_store(&held->moved, true);
        rt_source_attend(&lease->conn.source, 0);
    }
}

void rds_held_wait_sent(struct rds_lease *lease, struct rt_job *job)
{
    struct rds_held *held = &lease->held;

    wait(lease, job, &held->writer, &held->write_by);
    if (rds_held_unsent(lease) == 0 || atomic_load(&held->lost) != RT_OK)
        wake(&held->writer, RT_OK);
}

bool rds_held_withdraw(struct rds_lease *lease, struct rt_job *job)
{
    struct rt_job *expected = job;

    if (atomic_compare_exchange_strong(&lease->held.reader, &expected, NULL))
        return true;
    expected = job;
    return atomic_compare_exchange_strong(&lease->held.writer, &expected, NULL);
}

int rds_held_lost(const struct rds_lease *lease, const char **why)
{
    int err = atomic_load(&lease->held.lost);

    *why = err != RT_OK ? lease->held.why : "";
    return err;
}

void rds_held_spare(struct rds_lease *lease)
{
    struct rds_lessor *lessor = lease->lessor;

    /* Before the move: whoever reclaims it counts it down. */
    atomic_fetch_add(&lessor->spares, 1);
    if (!rds_lease_move(lease, RDS_LEASE_TAKEN, RDS_LEASE_SPARE))
        atomic_fetch_sub(&lessor->spares, 1);
    else if (rt_read(&lessor->queued) > 0 || !rt_stack_empty(&lessor->inbox))
        rds_lessor_serve(lessor); /* somebody waits for room */
}

bool rds_held_resume(struct rds_lease *lease)
{
    if (rds_lease_move(lease, RDS_LEASE_SPARE, RDS_LEASE_TAKEN))
        atomic_fetch_sub(&lease->lessor->spares, 1);
    return atomic_load(&lease->state) == RDS_LEASE_TAKEN &&
           atomic_load(&lease->held.lost) == RT_OK;
}

void rds_held_release(struct rds_lease *lease)
{
    struct rds_conn *conn = &lease->conn;

    rds_lease_let_die(lease);
    if (rds_conn_enter(conn, 0)) {
        rds_lease_look(lease); /* closes it */
        while (!rds_conn_leave(conn)) {
        }
    }
    rt_source_attend(&conn->source, 0); /* a worker lets go of the source */
    rds_lease_was_read(lease); /* who waits for room has it, even if another closed it */
    rds_lease_unref(lease);
}

/* ---- for who holds the connection ---------------------------------------- */

void rds_held_begin(struct rds_conn *conn)
{
    conn->builder.pushes = true;
    held_of(conn)->from = conn->appended;
    atomic_store(&held_of(conn)->on, true);
    atomic_fetch_add(&conn->lease->lessor->held, 1);
}

bool rds_held_append(struct rds_conn *conn, size_t most)
{
    struct rds_held *held = held_of(conn);
    struct rt_node *node = rt_stack_take(&held->outbox);

    if (held->chunks == NULL)
        held->chunks = node;
    else if (node != NULL)
        held->last_chunk->next = node;
    for (; node != NULL; node = node->next)
        held->last_chunk = node;
    while (held->chunks != NULL && sdslen(conn->ctx->obuf) < most) {
        struct rds_chunk *chunk = RT_CONTAINER_OF(held->chunks, struct rds_chunk, node);
        size_t n = chunk->len - held->head_sent;

        if (n > most)
            n = most;
        if (redisAppendFormattedCommand(conn->ctx, chunk->bytes + held->head_sent, n) != REDIS_OK)
            return false;
        conn->appended += n;
        held->head_sent += n;
        if (held->head_sent < chunk->len)
            continue;
        held->head_sent = 0;
        held->chunks = chunk->node.next;
        free(chunk);
    }
    return true;
}

void rds_held_sent(struct rds_conn *conn)
{
    struct rds_held *held = held_of(conn);

    if (atomic_load_explicit(&held->gone, memory_order_relaxed) != conn->written - held->from) {
        atomic_store(&held->gone, conn->written - held->from);
        rt_fence(); /* Partner: wait(). */
    }
    if (atomic_load(&held->writer) != NULL && rds_held_unsent(conn->lease) <= RDS_HELD_UNSENT)
        wake(&held->writer, RT_OK);
}

bool rds_held_receive(struct rds_conn *conn, struct rds_arena **into)
{
    struct rds_held *held = held_of(conn);
    struct rds_received *received = held->coming;

    if (received == NULL && (received = malloc(sizeof *received)) == NULL)
        return false;
    rds_arena_init(&received->arena, received->inline_bytes, sizeof received->inline_bytes);
    held->coming = received;
    *into = &received->arena;
    return true;
}

void rds_held_received(struct rds_conn *conn, const char *too_big)
{
    struct rds_held *held = held_of(conn);
    struct rds_received *received = held->coming;

    if (too_big != NULL)
        rds_arena_set_text(&received->arena, RDS_FAILURE, too_big);
    else if (received->arena.data[0] == RDS_PUSH)
        rt_count(&conn->lease->lessor->pushes, 1);
    held->coming = NULL;
    held->fresh = true;
    atomic_fetch_add(&held->count, 1);
    atomic_fetch_add(&held->bytes, received->arena.len);
    rt_stack_push(&held->received, &received->node);
}

void rds_held_tell(struct rds_conn *conn)
{
    struct rds_held *held = held_of(conn);
    struct rt_job *reader;

    if (!held->fresh)
        return;
    held->fresh = false;
    if (conn->ctx != NULL) /* the same read may have ended it */
        rds_lease_shrink(conn, SMALL_BUFFER);
    rt_fence(); /* Partner: wait(). */
    reader = atomic_exchange(&held->reader, NULL);
    rds_loan_heard(conn, reader);
    if (reader != NULL)
        rt_pool_complete(reader, RT_OK);
}

bool rds_held_is_full(struct rds_conn *conn)
{
    struct rds_held *held = held_of(conn);

    if (atomic_load(&held->count) < RDS_HELD_MOST && atomic_load(&held->bytes) < RDS_HELD_BYTES)
        return false;
    atomic_store(&held->stopped, true);
    /* Once more: the holder may have taken them all before he could see it.
     * Partner: rds_held_take(). */
    if (atomic_load(&held->count) < RDS_HELD_MOST && atomic_load(&held->bytes) < RDS_HELD_BYTES &&
        atomic_exchange(&held->stopped, false))
        return false;
    return atomic_load(&held->stopped);
}

/* If the deadline of who waits in slot has passed, tell him.  The deadline that is
 * left.  Somebody who has come meanwhile is told a little early, for nothing. */
static uint64_t expire(struct rt_job *_Atomic *slot, _Atomic uint64_t *by, uint64_t now)
{
    uint64_t deadline = atomic_load(by);
    struct rt_job *job;

    if (atomic_load(slot) == NULL)
        return RT_NEVER; /* who comes later says when */
    if (deadline > now)
        return deadline;
    job = atomic_exchange(slot, NULL);
    if (job != NULL)
        rt_pool_complete(job, job->deadline <= now ? RT_ETIMEOUT : RT_OK);
    return RT_NEVER;
}

uint64_t rds_held_expire(struct rds_conn *conn, uint64_t now)
{
    struct rds_held *held = held_of(conn);
    uint64_t read = expire(&held->reader, &held->read_by, now);
    uint64_t written = expire(&held->writer, &held->write_by, now);

    return read < written ? read : written;
}

void rds_held_end(struct rds_conn *conn, int err, const char *why)
{
    struct rds_held *held = held_of(conn);

    if (atomic_load(&held->lost) == RT_OK) {
        snprintf(held->why, sizeof held->why, "%s", why);
        atomic_store(&held->lost, err);
    }
    rt_fence(); /* Partner: wait(). */
    wake(&held->reader, RT_OK);
    wake(&held->writer, RT_OK);
}
