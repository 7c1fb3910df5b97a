/* From nothing to READY: credentials, lookup, connect, TLS, handshake, back-off.
 *
 * One deadline (`connect_by`) covers a whole try. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "rds_conn.h"
#include "rds_lease.h"

#define SECURED_WITHIN (60 * RT_SEC) /* where there is no other limit; asyncio's as well */

void rds_conn_move(struct rds_conn *conn, enum rds_conn_state to)
{
    enum rds_conn_state from = rds_conn_state(conn);

    RT_CHECK(from != RDS_CONN_CLOSED);
    RT_CHECK(to != RDS_CONN_HANDSHAKE || from == RDS_CONN_CONNECTING || from == RDS_CONN_SECURING);
    RT_CHECK(to != RDS_CONN_READY || from == RDS_CONN_HANDSHAKE);
    /* Partner: the submitter's look in rds_channel_submit(). */
    atomic_store(&conn->state, (uint32_t)to);
}

void rds_connect_close(struct rds_conn *conn)
{
    rds_login_stop_asking(conn);
    if (conn->resolve != NULL) {
        if (conn->resolve->fd >= 0)
            rt_source_unwatch(&conn->source, conn->resolve->fd);
        rds_resolve_release(conn->resolve);
        conn->resolve = NULL;
        conn->address = NULL;
    }
    /* First: a fork in between must not find the number of what is another's. */
    atomic_store(&conn->sock, -1);
    if (conn->fd >= 0) {
        rds_stream_free(conn->stream);
        conn->stream = NULL;
        rt_source_unwatch(&conn->source, conn->fd);
        close(conn->fd);
    }
    conn->fd = -1;
    if (conn->ctx != NULL) {
        rds_stream_free(conn->stream);
        conn->stream = NULL;
        if (conn->loan != NULL)
            rds_loan_end(conn);
        else
            rt_source_unwatch(&conn->source, conn->ctx->fd);
        redisFree(conn->ctx);
        conn->ctx = NULL;
    }
    rds_arena_free(&conn->scratch);
    conn->pinging = false;
}

/* ---- failing a try ------------------------------------------------------ */

static uint64_t backoff(struct rds_conn *conn)
{
    const struct rds_options *o = rds_conn_options(conn);
    unsigned doublings = conn->failures < 32 ? conn->failures : 32;
    uint64_t delay = o->backoff_base << doublings;

    if (doublings > 0 && delay >> doublings != o->backoff_base)
        delay = o->backoff_cap;
    if (delay > o->backoff_cap)
        delay = o->backoff_cap;
    if (o->backoff_jitter && delay > 0) {
        conn->jitter = conn->jitter * 1103515245u + 12345u;
        delay = delay / 0x8000 * ((conn->jitter >> 16) & 0x7fff);
    }
    return delay;
}

static bool worth_retrying(int err)
{
    return err == RT_ECONNECT || err == RT_ELOST || err == RT_ETIMEOUT || err == RT_ESYS ||
           err == RT_EBUSY;
}

void rds_connect_failed(struct rds_conn *conn, int err, const char *text, uint64_t now)
{
    int retries = rds_conn_options(conn)->connect_retries;
    char reason[512];

    snprintf(reason, sizeof reason, "%s", text); /* it may be in the context */
    if (err == RT_ELOST)
        snprintf(reason, sizeof reason, "Connection to %.200s lost while connecting: %.200s",
                 rds_channel_endpoint(conn->channel), text);
    else if (err == RT_EPROTOCOL)
        snprintf(reason, sizeof reason, "Protocol error from %.200s while connecting: %.200s",
                 rds_channel_endpoint(conn->channel), text);
    else if (err == RT_ETLS) /* redis-py's words */
        snprintf(reason, sizeof reason, "Error 1 connecting to %.200s. %.240s.",
                 rds_channel_endpoint(conn->channel), text);
    rt_count(&conn->channel->stats.connect_failures, 1);
    if (err == RT_ETLS)
        rds_tls_doubt(conn->channel->tls);
    rds_connect_close(conn);
    if (rds_conn_is_aside(conn)) {
        rds_login_forget(conn);
        rds_conn_move(conn, RDS_CONN_IDLE);
        return;
    }
    conn->failures++;
    if (worth_retrying(err) && (retries < 0 || conn->failures <= (unsigned)retries)) {
        conn->retry_at = rt_after(now, backoff(conn));
        rds_conn_move(conn, RDS_CONN_BACKOFF);
        rt_source_due(&conn->source, conn->retry_at);
        return;
    }
    conn->failures = 0;
    rds_conn_move(conn, RDS_CONN_IDLE);
    rds_settle_pending(conn, err == RT_ELOST ? RT_ECONNECT : err, reason);
}

void rds_connect_failed_errno(struct rds_conn *conn, int error, uint64_t now)
{
    char text[320], why[96];

    /* redis-py's words. */
    snprintf(text, sizeof text, "Error %d connecting to %.200s. %s.", error,
             rds_channel_endpoint(conn->channel), strerror_r(error, why, sizeof why));
    rds_connect_failed(conn, RT_ECONNECT, text, now);
}

/* ---- TLS ---------------------------------------------------------------- */

static void begin_securing(struct rds_conn *conn, uint64_t now)
{
    rds_conn_move(conn, RDS_CONN_SECURING);
    if (rds_conn_options(conn)->connect_timeout == RT_NEVER) {
        conn->connect_by = rt_after(now, SECURED_WITHIN);
        rt_source_due(&conn->source, conn->connect_by);
    }
}

/* Go on with the handshake of TLS. */
static void secure(struct rds_conn *conn, uint64_t now)
{
    struct rds_channel *channel = conn->channel;
    char why[240] = "";
    int err;

    if (conn->stream == NULL) {
        err = rds_stream_new(channel->tls, conn->fd, &conn->stream, why, sizeof why);
        if (err == RT_EBUSY) {
            rt_source_due(&conn->source, rt_after(now, 2 * RT_MS));
            return;
        }
        if (err != RT_OK) {
            rds_connect_failed(conn, err, err == RT_ETLS ? why : "no memory for a connection", now);
            return;
        }
    }
    switch (rds_stream_handshake(conn->stream)) {
    case RDS_STREAM_WAITS:
        break;
    case RDS_STREAM_FAILED:
        snprintf(why, sizeof why, "%s", conn->stream->why);
        rds_connect_failed(conn, conn->stream->refused ? RT_ETLS : RT_ELOST, why, now);
        break;
    case RDS_STREAM_DONE:
        rt_count(&channel->stats.tls_handshakes, 1);
        if (rds_stream_resumed(conn->stream))
            rt_count(&channel->stats.tls_resumed, 1);
        if (rds_conn_options(conn)->connect_timeout == RT_NEVER)
            conn->connect_by = RT_NEVER;
        rds_handshake_begin(conn, now);
        break;
    }
}

/* ---- connecting --------------------------------------------------------- */

static int tune(const struct rds_options *o, int fd)
{
    int on = 1;

    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
        return -1;
    if (!o->keepalive)
        return 0;
    if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) < 0)
        return -1;
    if (o->keep_idle > 0 &&
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &o->keep_idle, sizeof o->keep_idle) < 0)
        return -1;
    if (o->keep_interval > 0 && setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &o->keep_interval,
                                           sizeof o->keep_interval) < 0)
        return -1;
    if (o->keep_count > 0 &&
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &o->keep_count, sizeof o->keep_count) < 0)
        return -1;
    return 0;
}

/* Start connect() on a fresh socket.  0, or an errno. */
static int dial(struct rds_conn *conn, const struct sockaddr *address, socklen_t len)
{
    int saved;

    conn->fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        return errno;
    atomic_store(&conn->sock, conn->fd);
    if (address->sa_family != AF_UNIX && tune(rds_conn_options(conn), conn->fd) < 0)
        goto fail;
    if (connect(conn->fd, address, len) < 0 && errno != EINPROGRESS)
        goto fail;
    if (rt_source_watch(&conn->source, conn->fd, true, false) != RT_OK)
        goto fail;
    rds_conn_move(conn, RDS_CONN_CONNECTING);
    return 0;
fail:
    saved = errno;
    atomic_store(&conn->sock, -1);
    close(conn->fd);
    conn->fd = -1;
    return saved;
}

static void dial_unix(struct rds_conn *conn, uint64_t now)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char text[320];
    int error;

    if (strlen(rds_conn_options(conn)->path) >= sizeof address.sun_path) {
        snprintf(text, sizeof text, "Error %d connecting to %.200s. %s.", ENAMETOOLONG,
                 rds_conn_options(conn)->path, "The path is too long for a socket");
        rds_connect_failed(conn, RT_EINVAL, text, now);
        return;
    }
    snprintf(address.sun_path, sizeof address.sun_path, "%s", rds_conn_options(conn)->path);
    error = dial(conn, (const struct sockaddr *)&address, sizeof address);
    if (error != 0)
        rds_connect_failed_errno(conn, error, now);
}

static void dial_next(struct rds_conn *conn, uint64_t now)
{
    int error = conn->last_error != 0 ? conn->last_error : EHOSTUNREACH;

    while (conn->address != NULL) {
        const struct addrinfo *a = conn->address;

        conn->address = a->ai_next;
        error = dial(conn, a->ai_addr, a->ai_addrlen);
        if (error == 0)
            return;
    }
    rds_connect_failed_errno(conn, error, now);
}

static void resolved(struct rds_conn *conn, uint64_t now)
{
    char text[320];

    if (conn->resolve->gai_error != 0) {
        snprintf(text, sizeof text, "Error %d connecting to %.200s. %s.", conn->resolve->gai_error,
                 rds_channel_endpoint(conn->channel), gai_strerror(conn->resolve->gai_error));
        rds_connect_failed(conn, RT_ECONNECT, text, now);
        return;
    }
    if (conn->lease != NULL)
        rds_lease_looked_up(conn->lease);
    conn->address = conn->resolve->addresses;
    conn->last_error = 0;
    dial_next(conn, now);
}

static void connected_or_not(struct rds_conn *conn, uint64_t now)
{
    struct sockaddr_storage peer;
    socklen_t len = sizeof(int), peer_len = sizeof peer;
    int error = 0;

    if (getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        error = errno;
    if (error == 0 && getpeername(conn->fd, (struct sockaddr *)&peer, &peer_len) < 0) {
        if (errno == ENOTCONN)
            return; /* a stale event: connect() is still under way */
        error = errno;
    }
    if (error == 0) {
        if (conn->channel->tls != NULL)
            begin_securing(conn, now);
        else
            rds_handshake_begin(conn, now);
        return;
    }
    rt_source_unwatch(&conn->source, conn->fd);
    atomic_store(&conn->sock, -1);
    close(conn->fd);
    conn->fd = -1;
    conn->last_error = error;
    if (conn->address != NULL)
        dial_next(conn, now);
    else
        rds_connect_failed_errno(conn, error, now);
}

static void look_up(struct rds_conn *conn, uint64_t now)
{
    int err;

    if (rds_conn_options(conn)->path != NULL) {
        dial_unix(conn, now);
        return;
    }
    if (conn->lease != NULL && rds_lease_known_address(conn->lease, now)) {
        resolved(conn, now);
        return;
    }
    err = rds_resolve_start(rds_conn_options(conn)->host, rds_conn_options(conn)->port, &conn->resolve);
    if (err != RT_OK) {
        rds_connect_failed(conn, err, "no resources to look up the host name", now);
        return;
    }
    rds_conn_move(conn, RDS_CONN_RESOLVING);
    if (rds_resolve_done(conn->resolve))
        resolved(conn, now);
    else if (rt_source_watch(&conn->source, conn->resolve->fd, false, false) != RT_OK)
        rds_connect_failed_errno(conn, errno, now);
}

void rds_connect_begin(struct rds_conn *conn, struct rt_mailbox *mailbox, uint64_t now)
{
    const struct rds_options *o = rds_conn_options(conn);
    int err;

    conn->connect_by = rt_after(now, o->connect_timeout);
    rt_source_due(&conn->source, conn->connect_by);
    if (!o->ask_credentials) {
        look_up(conn, now);
        return;
    }
    rds_conn_move(conn, RDS_CONN_CREDENTIALS);
    err = rds_login_ask(conn, mailbox);
    if (err != RT_OK)
        rds_connect_failed(conn, err, "no memory to ask for credentials", now);
}

static void credentials_came(struct rds_conn *conn, uint64_t now)
{
    int err = rds_login_answer(conn);

    if (err == RT_EFULL)
        return;
    rds_login_stop_asking(conn);
    if (err != RT_OK)
        rds_connect_failed(conn, err, "the credential provider failed", now);
    else
        look_up(conn, now);
}

void rds_connect_step(struct rds_conn *conn, uint32_t what, uint64_t now,
                      struct rt_worker *worker)
{
    char text[256];

    switch (rds_conn_state(conn)) {
    case RDS_CONN_CREDENTIALS:
        credentials_came(conn, now);
        break;
    case RDS_CONN_RESOLVING:
        if (rds_resolve_done(conn->resolve)) {
            rt_source_unwatch(&conn->source, conn->resolve->fd);
            resolved(conn, now);
        }
        break;
    case RDS_CONN_CONNECTING:
        if (what & (RT_WRITABLE | RT_HANGUP))
            connected_or_not(conn, now);
        if (rds_conn_state(conn) != RDS_CONN_SECURING)
            break;
        /* fall through */
    case RDS_CONN_SECURING:
        rt_worker_pass_lead(worker); /* it computes, and may read files */
        secure(conn, now);
        break;
    case RDS_CONN_BACKOFF:
        if (now >= conn->retry_at) {
            if (conn->pending.head != NULL)
                rds_connect_begin(conn, conn->pending.head->mailbox, now);
            else
                rds_conn_move(conn, RDS_CONN_IDLE);
        } else {
            rt_source_due(&conn->source, conn->retry_at);
        }
        return;
    default:
        break;
    }
    switch (rds_conn_state(conn)) {
    case RDS_CONN_CREDENTIALS:
    case RDS_CONN_RESOLVING:
    case RDS_CONN_CONNECTING:
    case RDS_CONN_SECURING:
    case RDS_CONN_HANDSHAKE:
        if (now < conn->connect_by) {
            rt_source_due(&conn->source, conn->connect_by);
            break;
        }
        snprintf(text, sizeof text,
                 "Timeout connecting to %.140s%s: the command was not sent, so it was not executed",
                 rds_channel_endpoint(conn->channel),
                 rds_conn_state(conn) == RDS_CONN_SECURING ? " in the handshake of TLS" : "");
        rds_connect_failed(conn, RT_ETIMEOUT, text, now);
        break;
    default:
        break;
    }
}
