/* From nothing to READY: credentials, lookup, connect, handshake, back-off.
 *
 * One deadline (`connect_by`) covers a whole try.  The handshake is one write:
 * HELLO with AUTH (or AUTH alone), CLIENT SETNAME, CLIENT SETINFO, SELECT; the
 * replies are checked one by one as they come. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "rds_cmd.h"
#include "rds_conn.h"
#include "rds_lease.h"

#define SECURED_WITHIN (60 * RT_SEC) /* where there is no other limit; asyncio's as well */

enum step { STEP_HELLO, STEP_AUTH, STEP_SETNAME, STEP_SETINFO, STEP_SELECT };

static const struct rds_options *options_of(const struct rds_conn *conn)
{
    return &conn->channel->options;
}

void rds_conn_move(struct rds_conn *conn, enum rds_conn_state to)
{
    enum rds_conn_state from = rds_conn_state(conn);

    RT_CHECK(from != RDS_CONN_CLOSED);
    RT_CHECK(to != RDS_CONN_HANDSHAKE || from == RDS_CONN_CONNECTING || from == RDS_CONN_SECURING);
    RT_CHECK(to != RDS_CONN_READY || from == RDS_CONN_HANDSHAKE);
    /* Partner: the submitter's look in rds_channel_submit(). */
    atomic_store(&conn->state, (uint32_t)to);
}

static void wipe(char **secret)
{
    if (*secret == NULL)
        return;
    explicit_bzero(*secret, strlen(*secret));
    free(*secret);
    *secret = NULL;
}

void rds_connect_forget(struct rds_conn *conn)
{
    wipe(&conn->username);
    wipe(&conn->password);
}

/* conn does not wait for credentials any more; the last one wipes them. */
static void stop_asking(struct rds_conn *conn)
{
    struct rds_channel *channel = conn->channel;

    if (!conn->asking)
        return;
    conn->asking = false;
    if (atomic_fetch_sub(&channel->asking, 1) == 1)
        rds_credentials_free(atomic_exchange(&channel->credentials, NULL));
}

void rds_connect_close(struct rds_conn *conn)
{
    stop_asking(conn);
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
    const struct rds_options *o = options_of(conn);
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
    int retries = options_of(conn)->connect_retries;
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

static void failed_errno(struct rds_conn *conn, int error, uint64_t now)
{
    char text[320], why[96];

    /* redis-py's words. */
    snprintf(text, sizeof text, "Error %d connecting to %.200s. %s.", error,
             rds_channel_endpoint(conn->channel), strerror_r(error, why, sizeof why));
    rds_connect_failed(conn, RT_ECONNECT, text, now);
}

/* ---- handshake ---------------------------------------------------------- */

static bool put(struct rds_conn *conn, enum step step, int argc, const char **argv)
{
    redisContext *c = conn->ctx;
    size_t before = sdslen(c->obuf);

    if (redisAppendCommandArgv(c, argc, argv, NULL) != REDIS_OK)
        return false;
    conn->appended += sdslen(c->obuf) - before;
    conn->steps[conn->step_count++] = (uint8_t)step;
    return true;
}

static bool put_handshake(struct rds_conn *conn)
{
    const struct rds_options *o = options_of(conn);
    const char *user = conn->username, *pass = conn->password;
    const char *argv[5];
    char number[24];
    bool ok = true;
    int argc = 0;

    conn->step = conn->step_count = 0;
    if (o->protocol == 3) {
        argv[argc++] = "HELLO";
        argv[argc++] = "3";
        if (pass != NULL) {
            argv[argc++] = "AUTH";
            argv[argc++] = user != NULL && *user != '\0' ? user : "default";
            argv[argc++] = pass;
        }
        ok = put(conn, STEP_HELLO, argc, argv);
    } else if (pass != NULL) {
        argv[argc++] = "AUTH";
        if (user != NULL && *user != '\0' && !conn->single_auth)
            argv[argc++] = user;
        argv[argc++] = pass;
        ok = put(conn, STEP_AUTH, argc, argv);
    }
    if (ok && o->client_name != NULL)
        ok = put(conn, STEP_SETNAME, 3, (const char *[]){ "CLIENT", "SETNAME", o->client_name });
    if (ok && o->lib_name != NULL)
        ok = put(conn, STEP_SETINFO, 4,
                 (const char *[]){ "CLIENT", "SETINFO", "LIB-NAME", o->lib_name });
    if (ok && o->lib_version != NULL)
        ok = put(conn, STEP_SETINFO, 4,
                 (const char *[]){ "CLIENT", "SETINFO", "LIB-VER", o->lib_version });
    if (ok && o->db != 0) {
        snprintf(number, sizeof number, "%d", o->db);
        ok = put(conn, STEP_SELECT, 2, (const char *[]){ "SELECT", number });
    }
    return ok;
}

static void ready(struct rds_conn *conn)
{
    rds_conn_move(conn, RDS_CONN_READY);
    conn->failures = 0;
    conn->quiet_since = rt_now();
    rt_count(&conn->channel->stats.connects, 1);
    wipe(&conn->username);
    wipe(&conn->password);
}

static bool copy_credentials(struct rds_conn *conn, const char *username, const char *password)
{
    conn->username = username != NULL ? strdup(username) : NULL;
    conn->password = strdup(password != NULL ? password : "");
    return conn->password != NULL && (username == NULL || conn->username != NULL);
}

/* Those of rds_channel_login(), if there are any. */
static bool take_login(struct rds_conn *conn, bool *found)
{
    struct rds_channel *channel = conn->channel;
    bool copied = true;

    while (atomic_flag_test_and_set_explicit(&channel->login_lock, memory_order_acquire)) {
    }
    *found = channel->login != NULL;
    if (*found)
        copied = copy_credentials(conn, channel->login->username, channel->login->password);
    atomic_flag_clear_explicit(&channel->login_lock, memory_order_release);
    return copied;
}

/* The credentials for this try: the configured ones, later ones in their place, or
 * the owner's answer. */
static bool take_credentials(struct rds_conn *conn)
{
    const struct rds_options *o = options_of(conn);
    bool found;

    conn->identity = atomic_load(&conn->channel->identity);
    if (o->ask_credentials)
        return true; /* rds_connect_step() has put them there */
    wipe(&conn->username);
    wipe(&conn->password);
    if (!take_login(conn, &found))
        return false;
    if (found || (o->password == NULL && o->username == NULL))
        return true;
    return copy_credentials(conn, o->username, o->password);
}

static void begin_handshake(struct rds_conn *conn, uint64_t now)
{
    const redisOptions options = {
        .type = REDIS_CONN_USERFD,
        .options = REDIS_OPT_NONBLOCK,
        .endpoint.fd = conn->fd,
    };

    conn->ctx = redisConnectWithOptions(&options);
    if (conn->ctx == NULL || conn->ctx->err) {
        rds_connect_failed(conn, RT_ENOMEM, "no memory for a connection", now);
        return;
    }
    conn->fd = -1; /* the context's now */
    rds_exchange_attach(conn);
    if (conn->stream != NULL)
        rt_source_attend(&conn->source, RT_READABLE); /* it may have read ahead */
    if (conn->resolve != NULL) {
        rds_resolve_release(conn->resolve);
        conn->resolve = NULL;
        conn->address = NULL;
    }
    rds_conn_move(conn, RDS_CONN_HANDSHAKE);
    if (rt_source_watch(&conn->source, conn->ctx->fd, false, true) != RT_OK) {
        failed_errno(conn, errno, now);
        return;
    }
    if (!take_credentials(conn) || !put_handshake(conn)) {
        rds_connect_failed(conn, RT_ENOMEM, "no memory for a connection", now);
        return;
    }
    if (conn->step_count == 0) {
        ready(conn);
        return;
    }
    (void)rds_exchange_write(conn);
}

/* ---- TLS ---------------------------------------------------------------- */

static void begin_securing(struct rds_conn *conn, uint64_t now)
{
    rds_conn_move(conn, RDS_CONN_SECURING);
    if (options_of(conn)->connect_timeout == RT_NEVER) {
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
        if (options_of(conn)->connect_timeout == RT_NEVER)
            conn->connect_by = RT_NEVER;
        begin_handshake(conn, now);
        break;
    }
}

static bool says(const struct rds_node *node, const char *word)
{
    return node->str != NULL && node->len == strlen(word) &&
           strncasecmp(node->str, word, node->len) == 0;
}

static bool starts(const struct rds_node *node, const char *word)
{
    return node->str != NULL && node->len >= strlen(word) &&
           strncasecmp(node->str, word, strlen(word)) == 0;
}

/* HELLO answers with a map (an array on RESP2) whose "proto" is the version. */
static bool is_hello(struct rds_arena *reply, int protocol)
{
    struct rds_node node;
    uint32_t at = 0;

    if (!rds_reply_next(reply, &at, &node) || (node.type != RDS_MAP && node.type != RDS_ARRAY))
        return false;
    while (rds_reply_next(reply, &at, &node)) {
        if (says(&node, "proto") && rds_reply_next(reply, &at, &node))
            return node.type == RDS_INT && node.integer == protocol;
    }
    return false;
}

static bool is_auth_error(const struct rds_node *node)
{
    return starts(node, "WRONGPASS") || starts(node, "NOAUTH") || starts(node, "NOPERM") ||
           starts(node, "ERR invalid password") || starts(node, "ERR AUTH ") ||
           starts(node, "ERR Client sent AUTH") || starts(node, "ERR wrong number of arguments");
}

/* Errors that pass: the server is busy starting, or full. */
static bool is_passing_error(const struct rds_node *node)
{
    return starts(node, "LOADING") || starts(node, "ERR max number of clients") ||
           starts(node, "MASTERDOWN") || starts(node, "BUSY");
}

static void refused(struct rds_conn *conn, const struct rds_node *node, enum step step)
{
    char text[256];
    int err = RT_EREFUSED;

    snprintf(text, sizeof text, "%.*s", node->len > 200 ? 200 : (int)node->len, node->str);
    if (step == STEP_AUTH && conn->username != NULL && !conn->single_auth &&
        starts(node, "ERR wrong number of arguments")) {
        /* A server before 6.0 knows no users: try with the password alone. */
        conn->single_auth = true;
        err = RT_ELOST;
    } else if (is_passing_error(node)) {
        err = RT_EBUSY;
    } else if (is_auth_error(node)) {
        err = RT_EAUTH;
    }
    rds_connect_failed(conn, err, text, rt_now());
}

static void heed_reply(struct rds_conn *conn)
{
    struct rds_node node = { 0 };
    uint32_t at = 0;
    enum step step;

    if (conn->builder.too_big || !rds_reply_next(&conn->scratch, &at, &node)) {
        rds_settle_lost(conn, RT_EPROTOCOL, "an impossible reply");
        return;
    }
    if (conn->pinging) {
        conn->pinging = false;
        if (!says(&node, "PONG"))
            rds_settle_lost(conn, RT_ELOST, "the health check failed");
        return;
    }
    if (conn->step >= conn->step_count) {
        rds_settle_lost(conn, RT_EPROTOCOL, "a reply that no command asked for");
        return;
    }
    step = (enum step)conn->steps[conn->step++];
    if (node.type == RDS_ERROR) {
        if (step != STEP_SETINFO) { /* known from server 7.2 on */
            refused(conn, &node, step);
            return;
        }
    } else if (step == STEP_HELLO) {
        if (!is_hello(&conn->scratch, options_of(conn)->protocol)) {
            rds_settle_lost(conn, RT_EPROTOCOL, "an invalid answer to HELLO");
            return;
        }
    } else if (!says(&node, "OK")) {
        rds_settle_lost(conn, RT_EPROTOCOL, "an invalid answer to the handshake");
        return;
    }
    if (conn->step == conn->step_count)
        ready(conn);
}

void rds_connect_reply(struct rds_conn *conn)
{
    heed_reply(conn);
    rds_arena_free(&conn->scratch);
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
    if (address->sa_family != AF_UNIX && tune(options_of(conn), conn->fd) < 0)
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

    if (strlen(options_of(conn)->path) >= sizeof address.sun_path) {
        snprintf(text, sizeof text, "Error %d connecting to %.200s. %s.", ENAMETOOLONG,
                 options_of(conn)->path, "The path is too long for a socket");
        rds_connect_failed(conn, RT_EINVAL, text, now);
        return;
    }
    snprintf(address.sun_path, sizeof address.sun_path, "%s", options_of(conn)->path);
    error = dial(conn, (const struct sockaddr *)&address, sizeof address);
    if (error != 0)
        failed_errno(conn, error, now);
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
    failed_errno(conn, error, now);
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
            begin_handshake(conn, now);
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
        failed_errno(conn, error, now);
}

static void look_up(struct rds_conn *conn, uint64_t now)
{
    int err;

    if (options_of(conn)->path != NULL) {
        dial_unix(conn, now);
        return;
    }
    if (conn->lease != NULL && rds_lease_known_address(conn->lease, now)) {
        resolved(conn, now);
        return;
    }
    err = rds_resolve_start(options_of(conn)->host, options_of(conn)->port, &conn->resolve);
    if (err != RT_OK) {
        rds_connect_failed(conn, err, "no resources to look up the host name", now);
        return;
    }
    rds_conn_move(conn, RDS_CONN_RESOLVING);
    if (rds_resolve_done(conn->resolve))
        resolved(conn, now);
    else if (rt_source_watch(&conn->source, conn->resolve->fd, false, false) != RT_OK)
        failed_errno(conn, errno, now);
}

void rds_connect_begin(struct rds_conn *conn, uint64_t now)
{
    struct rds_channel *channel = conn->channel;
    const struct rds_options *o = &channel->options;
    int err;

    conn->connect_by = rt_after(now, o->connect_timeout);
    rt_source_due(&conn->source, conn->connect_by);
    if (!o->ask_credentials) {
        look_up(conn, now);
        return;
    }
    /* In this order: an answer that is dropped because nobody asks is seen here.
     * Partner: rds_channel_credentials(). */
    conn->asking = true;
    atomic_fetch_add(&channel->asking, 1);
    conn->answers_seen = atomic_load(&channel->answers);
    rds_conn_move(conn, RDS_CONN_CREDENTIALS);
    err = channel->credentials_needed(channel->user, conn->pending.head->mailbox);
    if (err != RT_OK)
        rds_connect_failed(conn, err, "no memory to ask for credentials", now);
}

/* The answer, copied.  0; RT_EFULL: not there yet; or what is wrong. */
static int copy_answer(struct rds_conn *conn)
{
    struct rds_channel *channel = conn->channel;
    struct rds_credentials *c, *none = NULL;
    int err;

    if (atomic_load(&channel->answers) == conn->answers_seen)
        return RT_EFULL;
    c = atomic_exchange(&channel->credentials, NULL);
    if (c == NULL) { /* another connection is copying it */
        rt_source_attend(&conn->source, 0);
        return RT_EFULL;
    }
    err = c->err;
    wipe(&conn->username);
    wipe(&conn->password);
    if (err == RT_OK) {
        conn->username = c->username != NULL ? strdup(c->username) : NULL;
        conn->password = strdup(c->password);
        if (conn->password == NULL || (c->username != NULL && conn->username == NULL))
            err = RT_ENOMEM;
    }
    /* Back for the others, unless a newer one has come. */
    if (!atomic_compare_exchange_strong(&channel->credentials, &none, c))
        rds_credentials_free(c);
    return err;
}

static void credentials_came(struct rds_conn *conn, uint64_t now)
{
    int err = copy_answer(conn);

    if (err == RT_EFULL)
        return;
    stop_asking(conn);
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
                rds_connect_begin(conn, now);
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

void rds_credentials_free(struct rds_credentials *credentials)
{
    if (credentials == NULL)
        return;
    wipe(&credentials->username);
    wipe(&credentials->password);
    free(credentials);
}
