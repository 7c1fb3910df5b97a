/* The handshake: what a new connection says first, and what the server answers.
 *
 * It is one write: HELLO with AUTH (or AUTH alone), CLIENT SETNAME, CLIENT SETINFO,
 * SELECT; the replies are checked one by one as they come.  The connection aside, which
 * nobody needs, says PING as well: its commands go there only when it has been answered. */
#include <errno.h>
#include <hiredis/sds.h>
#include <strings.h>

#include "rds_conn.h"

enum step { STEP_HELLO, STEP_AUTH, STEP_SETNAME, STEP_SETINFO, STEP_SELECT, STEP_PING };

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
    const struct rds_options *o = rds_conn_options(conn);
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
    if (ok && rds_conn_is_aside(conn))
        ok = put(conn, STEP_PING, 1, (const char *[]){ "PING" });
    return ok;
}

static void ready(struct rds_conn *conn)
{
    rds_conn_move(conn, RDS_CONN_READY);
    conn->failures = 0;
    conn->quiet_since = rt_now();
    rt_count(&conn->channel->stats.connects, 1);
    rds_login_forget(conn);
}

void rds_handshake_begin(struct rds_conn *conn, uint64_t now)
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
        rds_connect_failed_errno(conn, errno, now);
        return;
    }
    if (!rds_login_take(conn) || !put_handshake(conn)) {
        rds_connect_failed(conn, RT_ENOMEM, "no memory for a connection", now);
        return;
    }
    if (conn->step_count == 0) {
        ready(conn);
        return;
    }
    (void)rds_exchange_write(conn);
}

/* ---- the answers ---------------------------------------------------------- */

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
        if (!is_hello(&conn->scratch, rds_conn_options(conn)->protocol)) {
            rds_settle_lost(conn, RT_EPROTOCOL, "an invalid answer to HELLO");
            return;
        }
    } else if (!says(&node, step == STEP_PING ? "PONG" : "OK")) {
        rds_settle_lost(conn, RT_EPROTOCOL, "an invalid answer to the handshake");
        return;
    }
    if (conn->step == conn->step_count)
        ready(conn);
}

void rds_handshake_reply(struct rds_conn *conn)
{
    heed_reply(conn);
    rds_arena_free(&conn->scratch);
}
