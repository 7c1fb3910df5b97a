/* Read-through: small replies are read by the thread that waits for them.
 *
 * The counterpart of write-through.  When all that is under way on a connection
 * comes from one mailbox and its replies are small, a worker between the socket
 * and the event loop only costs: it is woken for each reply, and wakes the loop.
 * So the worker lends the socket to the mailbox (rt_mailbox.h), and the owner, who
 * is woken by the socket itself, reads and matches what has come before it looks
 * into the mailbox.
 *
 * The connection goes back to the workers
 *   - when replies grow, or come by the hundred: reading and parsing is theirs then,
 *     beside an owner that is busy with what came before,
 *   - when another mailbox's command comes in,
 *   - when the socket does not take what is to be written,
 *   - when it breaks or is closed,
 *   - when the owner has read nothing for a TICK: it is busy, or gone, or there is
 *     nothing to do, and then a worker watches for the server's close.
 *
 * A held lease (rds_held.h) is lent while somebody waits for each of its messages.  It
 * has no TICK: thousands of them would tick for nothing, its holder takes its messages in
 * that loop anyway, however late, and it is the loop that sees the server's close.  It
 * goes back
 *   - when so much comes that reading is a worker's, or nobody waits for it, or takes it,
 *   - when its holder waits in another loop,
 *   - when the socket is full, breaks or is closed.
 *
 * So what the workers promise holds while a connection is lent, at worst a tick
 * late: deadlines are theirs all the time, and before one is enforced they read
 * what has come.
 *
 * Who moves a loan holds the connection's `owner`. */
#include "rds_lease.h"

#define TICK (4 * RT_MS)
#define SMALL ((size_t)4 << 10) /* bytes of a read: below it is worth lending */
#define LARGE ((size_t)12 << 10) /* and above it no more */
#define ENOUGH 4                /* small reads in a row before a loan */
#define FEW 128                 /* commands in flight; twice as many end a loan */

static void drop(struct rt_source *src)
{
    struct rds_conn *conn = RT_CONTAINER_OF(src, struct rds_conn, source);
    struct rds_channel *channel = conn->channel;

    if (conn->lease != NULL)
        rds_lease_unref(conn->lease);
    rds_channel_unref(channel);
}

/* The socket of a lent connection is ready.  Thread: the mailbox's owner. */
static void read_through(struct rt_source *src, uint32_t what)
{
    struct rds_conn *conn = RT_CONTAINER_OF(src, struct rds_conn, source);
    bool hand_over = false;
    size_t bytes = 0, n;

    if (!rds_conn_enter(conn, what))
        return; /* the holder reads it */
    atomic_fetch_and(&conn->notes, ~what); /* it is us who do */
    if (conn->loan != NULL && conn->ctx != NULL) {
        conn->readable = true;
        conn->hung_up |= (what & RT_HANGUP) != 0;
        do { /* once, but for what TLS has read ahead, which is no event any more */
            n = rds_exchange_read_once(conn);
            bytes += n;
        } while (n > 0 && conn->loan != NULL && conn->readable && bytes <= LARGE);
        conn->read_through++;
        rt_count(&conn->channel->stats.inline_reads, 1);
        /* Readable still: there is too much, or its holder takes nothing. */
        if (conn->loan != NULL &&
            (conn->readable || bytes > LARGE || conn->inflight.count > 2 * FEW))
            rds_loan_recall(conn);
        hand_over = conn->loan == NULL || conn->pending.head != NULL;
    }
    while (!rds_conn_leave(conn))
        hand_over = true; /* a note: it is a worker's */
    if (hand_over)
        rt_source_attend(&conn->source, RT_READABLE);
    if (conn->lease != NULL)
        rds_lease_was_read(conn->lease);
}

/* Whether nothing stands in the way of a loan. */
static bool is_quiet(const struct rds_conn *conn)
{
    return rds_conn_state(conn) == RDS_CONN_READY && conn->pending.head == NULL &&
           !conn->watch_write && !conn->readable && !conn->pinging && conn->skip == 0 &&
           !rds_conn_closing(conn);
}

/* Lend the socket to mailbox, which a job keeps that is not posted yet.  False: it is
 * the poller's still, or the connection is lost. */
static bool lend(struct rds_conn *conn, struct rt_mailbox *mailbox)
{
    struct rt_loan *loan = malloc(sizeof *loan);

    if (loan == NULL)
        return false;
    loan->mailbox = mailbox;
    loan->source = &conn->source;
    loan->fd = conn->ctx->fd;
    loan->ready = read_through;
    loan->drop = drop;
    rt_source_unwatch(&conn->source, conn->ctx->fd);
    rds_channel_ref(conn->channel); /* the loan's */
    if (conn->lease != NULL)
        rds_lease_ref(conn->lease);
    conn->loan = loan;
    if (rt_mailbox_lend(loan) != RT_OK) {
        conn->loan = NULL;
        if (conn->lease != NULL)
            rds_lease_unref(conn->lease); /* never the last, nor here */
        rds_channel_unref(conn->channel);
        free(loan);
        if (rt_source_watch(&conn->source, conn->ctx->fd, false, false) != RT_OK)
            rds_settle_lost(conn, RT_ESYS, "epoll refused the socket");
        return false;
    }
    rt_count(&conn->channel->stats.loans, 1);
    return true;
}

void rds_loan_consider(struct rds_conn *conn, size_t bytes, uint64_t now)
{
    struct rt_mailbox *mailbox;

    conn->small_reads =
        bytes <= SMALL && conn->inflight.count <= FEW ? conn->small_reads + 1 : 0;
    /* The jobs that are not posted yet keep their mailbox. */
    if (conn->loan != NULL || conn->small_reads < ENOUGH || conn->home.head == NULL)
        return;
    mailbox = conn->home.head->mailbox;
    if (mailbox != conn->company || conn->company_run < conn->inflight.count || !is_quiet(conn) ||
        !lend(conn, mailbox))
        return;
    conn->read_through_seen = conn->read_through;
    rt_source_due(&conn->source, rt_after(now, TICK));
}

void rds_loan_heard(struct rds_conn *conn, const struct rt_job *reader)
{
    struct rds_held *held = &conn->lease->held;

    held->unawaited = reader != NULL ? 0 : held->unawaited + 1;
    if (rds_conn_state(conn) != RDS_CONN_READY)
        return;
    if (conn->loan != NULL) {
        if (held->unawaited >= ENOUGH)
            rds_loan_recall(conn);
    } else if (reader == NULL) {
        conn->small_reads = 0;
    } else if (conn->small_reads >= ENOUGH && held->chunks == NULL && is_quiet(conn) &&
               lend(conn, reader->mailbox)) {
        atomic_store(&held->moved, false); /* before he is told, so before he waits again */
        atomic_store(&held->lent_to, reader->mailbox);
    }
}

void rds_loan_look(struct rds_conn *conn)
{
    if (conn->loan != NULL && conn->lease != NULL &&
        atomic_exchange(&conn->lease->held.moved, false))
        rds_loan_recall(conn);
}

void rds_loan_end(struct rds_conn *conn)
{
    struct rt_loan *loan = conn->loan;

    conn->loan = NULL;
    conn->small_reads = 0;
    if (conn->lease != NULL)
        atomic_store(&conn->lease->held.lent_to, NULL);
    rt_mailbox_take_back(loan);
}

void rds_loan_recall(struct rds_conn *conn)
{
    rds_loan_end(conn);
    /* What is in the socket already is an event of the poller's now. */
    if (rt_source_watch(&conn->source, conn->ctx->fd, conn->watch_write, false) != RT_OK)
        rds_settle_lost(conn, RT_ESYS, "epoll refused the socket");
}

void rds_loan_tick(struct rds_conn *conn, uint64_t now)
{
    if (conn->loan == NULL)
        return;
    conn->readable = true; /* a deadline may be due: first what has come in time */
    if (rds_lease_is_held(conn->lease))
        return;
    if (conn->read_through == conn->read_through_seen) {
        rds_loan_recall(conn);
        return;
    }
    conn->read_through_seen = conn->read_through;
    rt_source_due(&conn->source, rt_after(now, TICK));
}
